//! Everything the world can say, as tables: names, phrases, and templates with places for them.

use super::sound::{self, Tone};
use super::world::{Appearance, BACKGROUNDS, COLOURS, SHAPES, TEXTURES};

/// Ways to say a motion, in the order of [`super::world::MOTIONS`]: the plainest, the -ing form,
/// another way to see it, and a speaker's way.
pub(super) const PHRASES: [[&str; 4]; 14] = [
    ["moves left", "moving to the left", "slides toward the left side", "heads west"],
    ["moves right", "moving to the right", "slides toward the right side", "heads east"],
    ["moves up", "moving upwards", "rises toward the top", "climbs and climbs"],
    ["moves down", "moving downwards", "sinks toward the bottom", "falls and falls"],
    ["rotates clockwise", "turning clockwise", "spins like a clock hand", "twirls as a clock does"],
    [
        "rotates counterclockwise",
        "turning counterclockwise",
        "spins against the clock",
        "twirls as no clock does",
    ],
    ["grows", "getting larger", "swells up again and again", "gets bigger and bigger"],
    ["shrinks", "getting smaller", "dwindles again and again", "gets tinier and tinier"],
    [
        "pulses and then jumps",
        "pulsing before it jumps",
        "swells once, then hops",
        "throbs first and leaps later",
    ],
    [
        "jumps and then pulses",
        "jumping before it pulses",
        "hops once, then swells",
        "leaps first and throbs later",
    ],
    ["orbits clockwise", "circling clockwise", "runs a clockwise round", "laps as a clock does"],
    [
        "orbits counterclockwise",
        "circling counterclockwise",
        "runs a round against the clock",
        "laps as no clock does",
    ],
    [
        "bounces lower and lower",
        "bouncing ever lower",
        "loses height in hops",
        "bounds less each time",
    ],
    [
        "bounces higher and higher",
        "bouncing ever higher",
        "gains height in hops",
        "bounds more each time",
    ],
];

/// Shapes as a speaker calls them.
const SPOKEN_SHAPES: [&str; 4] = ["circle", "box", "wedge", "spark"];

/// Colours as a speaker calls them.
const SPOKEN_COLOURS: [&str; 6] = ["crimson", "azure", "emerald", "golden", "violet", "amber"];

/// Numbers of beats: as an answer, of beats, of times.
pub(super) const BEATS: [[&str; 3]; sound::MOST_BEATS] = [
    ["one", "one beat", "once"],
    ["two", "two beats", "twice"],
    ["three", "three beats", "three times"],
];

/// What is seen, the plainest first.
pub(super) const VIDEO: [&str; 5] = [
    "{a name} {plain}",
    "a {texture} {name} {ing} over a {background} background",
    "the {name} {other}",
    "there is {a name} that {plain}",
    "on a {background} ground a {texture} {name} {plain}",
];

/// What is heard, the plainest first.
pub(super) const AUDIO: [&str; 4] = [
    "a {pitch} {timbre} sounds {times}",
    "{beats} of a {pitch} {timbre}",
    "a {kind} at a {pitch} pitch is heard {times}",
    "the sound is a {pitch} {timbre} with {beats}",
];

/// What a speaker would say, the plainest first.
pub(super) const SPEECH: [&str; 4] = [
    "watch this, the {spoken name} {spoken}",
    "look here, that {spoken name} {spoken}",
    "did you see it? the {spoken name} {spoken}",
    "now we have {a spoken name} that {spoken}",
];

/// All of it in one sentence, the plainest first.
pub(super) const FUSED: [&str; 3] = [
    "{a name} {plain} while a {pitch} {timbre} sounds {times} and the speaker says: {speech}",
    "with {beats} of a {pitch} {timbre} a {texture} {name} {plain} and someone says: {speech}",
    "someone says: {speech}, as {a name} {plain} to {beats} of a {kind} at a {pitch} pitch",
];

/// The same without sound.
pub(super) const FUSED_SILENT: [&str; 2] = [
    "{a name} {plain} and the speaker says: {speech}",
    "someone says: {speech}, as a {texture} {name} {plain}",
];

/// Questions, by what they are about.
pub(super) mod ask {
    pub(crate) const SHAPE: &str = "what shape is moving?";
    pub(crate) const COLOUR: &str = "what colour is the shape?";
    pub(crate) const IS_SHAPE: &str = "is the shape a {value}?";
    pub(crate) const IS_COLOUR: &str = "is the shape {value}?";
    pub(crate) const DOTS: &str = "how many small dots lie still in the corners?";
    pub(crate) const MOTION: &str = "what does the shape do?";
    pub(crate) const IS_MOTION: &str = "is the shape {value}?";
    pub(crate) const LARGER: &str = "does the shape get larger or smaller?";
    pub(crate) const FIRST: &str = "what happens first, the {one} or the {other}?";
    pub(crate) const AFTER: &str = "what happens after the {value}?";
    pub(crate) const HOPS: &str = "is the next hop lower or higher?";
    pub(crate) const BEATS: &str = "how many beats are heard?";
    pub(crate) const PITCH: &str = "how high is the sound?";
    pub(crate) const TIMBRE: &str = "what sound is heard?";
    pub(crate) const BEATS_AND_MOTION: &str = "does the sound have {one} while the shape {other}?";
    pub(crate) const EVENTS: &str = "how many events are there?";
    pub(crate) const FIRST_EVENT: &str = "what does the shape do first?";
    pub(crate) const EARLIER: &str = "which comes first, {one} or {other}?";
    pub(crate) const RIGHT_AFTER: &str = "what does the shape do right after it {value}?";
    pub(crate) const BEATS_OF_EVENT: &str = "how many beats are heard while the shape {value}?";
    /// All of them.
    pub(crate) const ALL: [&str; 20] = [
        SHAPE,
        COLOUR,
        IS_SHAPE,
        IS_COLOUR,
        DOTS,
        MOTION,
        IS_MOTION,
        LARGER,
        FIRST,
        AFTER,
        HOPS,
        BEATS,
        PITCH,
        TIMBRE,
        BEATS_AND_MOTION,
        EVENTS,
        FIRST_EVENT,
        EARLIER,
        RIGHT_AFTER,
        BEATS_OF_EVENT,
    ];
}

/// Answers that no other table holds.
pub(super) const ANSWERS: [&str; 9] =
    ["yes", "no", "larger", "smaller", "lower", "higher", "nothing", "pulse", "jump"];

/// Numbers of beats that a question can ask for; the last two are not one number.
pub(super) const BEAT_CLAIMS: [&str; 5] =
    ["one beat", "two beats", "three beats", "more than one beat", "fewer than three beats"];

/// What is true of a clip, for the places of a template.
#[derive(Debug, Clone, Copy)]
pub(super) struct Facts<'a> {
    /// What is seen.
    pub(super) look: &'a Appearance,
    /// Motion class.
    pub(super) motion: usize,
    /// What is heard; none in a silent file.
    pub(super) tone: Option<Tone>,
}

impl Facts<'_> {
    /// A template with its places filled in.
    pub(super) fn say(&self, template: &str) -> String {
        fill(template, |place| self.place(place))
    }

    fn place(&self, place: &str) -> String {
        let look = self.look;
        let [plain, ing, other, spoken] = PHRASES[self.motion];
        let spoken_name =
            || format!("{} {}", SPOKEN_COLOURS[look.colour], SPOKEN_SHAPES[look.shape]);
        let heard = |say: fn(Tone) -> &'static str| self.tone.map_or("", say).to_owned();
        match place {
            "name" => look.name(),
            "a name" => with_article(&look.name()),
            "spoken name" => spoken_name(),
            "a spoken name" => with_article(&spoken_name()),
            "texture" => TEXTURES[look.texture].to_owned(),
            "background" => BACKGROUNDS[look.background].to_owned(),
            "plain" => plain.to_owned(),
            "ing" => ing.to_owned(),
            "other" => other.to_owned(),
            "spoken" => spoken.to_owned(),
            "speech" => self.say(SPEECH[0]),
            "pitch" => heard(|tone| tone.pitch_name()),
            "timbre" => heard(|tone| tone.timbre().name),
            "kind" => heard(|tone| tone.timbre().kind),
            "beats" => heard(|tone| BEATS[tone.beats - 1][1]),
            "times" => heard(|tone| BEATS[tone.beats - 1][2]),
            _ => String::new(),
        }
    }
}

/// A template with the text that `value` gives for each `{place}`.
pub(super) fn fill(template: &str, value: impl Fn(&str) -> String) -> String {
    let (mut text, mut rest) = (String::new(), template);
    while let Some((before, after)) = rest.split_once('{') {
        let (place, next) = after.split_once('}').unwrap_or((after, ""));
        text.push_str(before);
        text.push_str(&value(place));
        rest = next;
    }
    text.push_str(rest);
    text
}

/// A name with `a` or `an` before it.
fn with_article(name: &str) -> String {
    let article = if name.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
    format!("{article} {name}")
}

/// Every text of the tables, in a fixed order; places of templates are blank.
pub(super) fn tables() -> Vec<String> {
    let mut texts = vec!["a", "an", "then"];
    texts.extend(PHRASES.iter().flatten());
    texts.extend(SHAPES);
    texts.extend(COLOURS.map(|(name, _)| name));
    texts.extend(SPOKEN_SHAPES);
    texts.extend(SPOKEN_COLOURS);
    texts.extend(TEXTURES);
    texts.extend(BACKGROUNDS);
    texts.extend(BEATS.iter().flatten());
    texts.extend(sound::PITCHES.map(|(name, _)| name));
    texts.extend(sound::TIMBRES.iter().flat_map(|timbre| [timbre.name, timbre.kind]));
    texts.extend(VIDEO.iter().chain(&AUDIO).chain(&SPEECH).chain(&FUSED).chain(&FUSED_SILENT));
    texts.extend(ask::ALL.iter().chain(&ANSWERS).chain(&BEAT_CLAIMS));
    texts.iter().map(|text| fill(text, |_| " ".to_owned())).collect()
}
