//! What is said about a clip, by what it tells.

use serde::Serialize;

use super::phrases::{AUDIO, FUSED, FUSED_SILENT, Facts, SPEECH, VIDEO};
use crate::rng::Rng;

/// Captions of one clip or event, several ways to say each; the first one is the plainest.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(super) struct Captions {
    /// What is seen.
    pub(super) video: Vec<String>,
    /// What is heard; empty for a silent file.
    pub(super) audio: Vec<String>,
    /// What a speaker would say; there is no voice in the sound track.
    pub(super) speech: Vec<String>,
    /// All of it in one sentence.
    pub(super) fused: Vec<String>,
}

/// Captions of a clip; the order of the paraphrases is drawn.
pub(super) fn captions(facts: &Facts<'_>, rng: &mut Rng) -> Captions {
    let mut say = |templates: &[&str]| {
        let mut order = vec![0];
        order.extend(rng.permutation(templates.len() - 1).into_iter().map(|at| at + 1));
        order.into_iter().map(|at| facts.say(templates[at])).collect::<Vec<_>>()
    };
    let heard = facts.tone.is_some();
    Captions {
        video: say(&VIDEO),
        audio: if heard { say(&AUDIO) } else { Vec::new() },
        speech: say(&SPEECH),
        fused: if heard { say(&FUSED) } else { say(&FUSED_SILENT) },
    }
}

impl Captions {
    /// The plainest ones of several events in one sentence each.
    pub(super) fn one_after_another(events: &[Self]) -> Self {
        let join = |of: fn(&Self) -> &Vec<String>| {
            let plainest: Vec<&str> =
                events.iter().filter_map(|event| of(event).first()).map(String::as_str).collect();
            if plainest.is_empty() { Vec::new() } else { vec![plainest.join(", then ")] }
        };
        Self {
            video: join(|event| &event.video),
            audio: join(|event| &event.audio),
            speech: join(|event| &event.speech),
            fused: join(|event| &event.fused),
        }
    }
}

/// The plainest text of a list, or nothing.
pub(super) fn plainest(texts: &[String]) -> String {
    texts.first().cloned().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::sound::Tone;
    use super::super::world::{APPEARANCES, Appearance, MOTIONS};
    use super::*;
    use crate::rng::Key;

    #[test]
    fn no_two_classes_share_a_caption_of_what_is_seen_or_said() {
        let mut said = BTreeMap::new();
        for label in 0..APPEARANCES {
            let look = Appearance::draw(label, &mut Key::new(1, "look").rng());
            for motion in 0..MOTIONS.len() {
                let mut rng = Key::new(2, "words").rng();
                let tone = Some(Tone::draw(&look, motion, &mut rng));
                let captions = captions(&Facts { look: &look, motion, tone }, &mut rng);
                assert!(captions.video[0].contains(&look.name()));
                for text in [captions.video, captions.speech, captions.fused].concat() {
                    assert!(!text.contains(['{', '}']) && !text.contains("  "), "{text}");
                    let before = said.insert(text.clone(), (label, motion));
                    assert!(before.is_none(), "{text}: {before:?}");
                }
            }
        }
    }

    #[test]
    fn what_is_heard_names_timbre_pitch_and_beats() {
        let look = Appearance::draw(5, &mut Key::new(1, "look").rng());
        let say = |motion, beats| {
            let tone = Some(Tone { timbre: motion, pitch: look.shape, beats });
            let facts = Facts { look: &look, motion, tone };
            captions(&facts, &mut Key::new(2, "words").rng())
        };
        assert_eq!(say(0, 2).audio[0], "a middle hum sounds twice");
        assert_eq!(
            say(3, 3).fused[0],
            "a blue square moves down while a middle horn sounds three times and the speaker \
             says: watch this, the azure box falls and falls"
        );
        for (one, other) in say(0, 1).audio.iter().zip(&say(0, 3).audio) {
            assert_ne!(one, other);
        }
        let silent = Facts { look: &look, motion: 0, tone: None };
        let silent = captions(&silent, &mut Key::new(2, "words").rng());
        assert!(silent.audio.is_empty());
        assert!(silent.fused.iter().all(|text| text.contains("says") && !text.contains("hum")));
    }
}
