//! Questions and answers of a record as a dialogue in ids, with places for the rows of a video.

use std::path::PathBuf;

use schemars::JsonSchema;
use schemas::entry::OptionProblem;
use serde::{Deserialize, Serialize};

use super::manifest::Entry;
use super::talk::{Exchange, Talk};
use super::texts::{check_from, check_length, check_tokenizer};
use super::words::{Rows, Tokenizers};
use crate::rng::Key;
use crate::tokenizer::{
    BUILT_IN, Batch, ChatTemplate, Dialogue, Layout, Length, Message, Role, Special, Spliced,
    TextError, Tokenizer, clean_caption,
};

/// Which turns of a record are taken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Turns {
    /// One question with its answer, drawn for every sample.
    #[default]
    Random,
    /// All of them, in their order.
    All,
}

/// What happens to a dialogue that does not fit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TooLong {
    /// It loses its oldest turns; where one turn alone is too long, it is refused.
    #[default]
    Cut,
    /// It is refused: the sample is replaced, and the notice says both numbers.
    Refuse,
}

/// Where the rows of a video go.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MediaOptions {
    /// Stands before the placeholders.
    #[serde(default = "tag")]
    pub tag: String,
    /// Stands after them.
    #[serde(default = "close")]
    pub close: String,
    /// Placeholders, one for each row that the language model is given.
    pub tokens: usize,
    /// Id of a placeholder, the same as the language model's `placeholder`; the first number beyond the
    /// vocabulary when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placeholder: Option<i64>,
}

fn tag() -> String {
    "<Video>".to_owned()
}

fn close() -> String {
    "</Video>".to_owned()
}

/// The question alone, for a Q-Former that reads it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct QuestionOptions {
    /// Its tokenizer; the dialogue's when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<PathBuf>,
    /// Ids per question; longer ones are cut, shorter ones padded.
    pub length: usize,
    /// Lower case without marks.
    pub clean: bool,
}

impl Default for QuestionOptions {
    fn default() -> Self {
        Self { tokenizer: None, length: 32, clean: false }
    }
}

/// A dialogue beside a clip.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DialogueOptions {
    /// Field of the manifest with a list of `{question, answer}`, of VideoChat2's `{i, q, a}`, of
    /// LLaVA's `{from: human | gpt, value}`, or of captions, which answer no question.
    pub from: String,
    /// Turns that are taken, by their field `about`; all when empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub about: Vec<String>,
    /// Folder, `tokenizer.json` or `vocab.txt`.
    pub tokenizer: PathBuf,
    /// `llama2`, `llama3`, `mistral`, `qwen2`, `vicuna`, a folder with a chat template, or a `.jinja`.
    pub template: String,
    /// Ids per dialogue; shorter ones are padded.
    pub length: usize,
    /// Where the rows of the video go; nowhere when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media: Option<MediaOptions>,
    /// What the system says; as the template says when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    /// Which turns are taken.
    #[serde(default)]
    pub pick: Turns,
    /// What happens to a dialogue that does not fit.
    #[serde(default)]
    pub long: TooLong,
    /// The question alone.
    #[serde(default)]
    pub question: QuestionOptions,
}

impl DialogueOptions {
    /// What is wrong, as far as options show it.
    pub fn check(&self) -> Vec<OptionProblem> {
        let mut problems = Vec::new();
        problems.extend(check_from("dialogue.from", &self.from));
        problems.extend(check_length("dialogue.length", self.length));
        problems.extend(check_length("dialogue.question.length", self.question.length));
        problems.extend(check_tokenizer("dialogue.tokenizer", &self.tokenizer));
        if let Some(tokenizer) = &self.question.tokenizer {
            problems.extend(check_tokenizer("dialogue.question.tokenizer", tokenizer));
        }
        // A path may not be there yet, as the data may not; it is opened with them.
        let path = self.template.contains('/') || self.template.ends_with(".jinja");
        let built_in = BUILT_IN.contains(&self.template.as_str());
        if !built_in && !path && !PathBuf::from(&self.template).exists() {
            let known = BUILT_IN.map(|name| format!("`{name}`")).join(", ");
            let message = format!("no chat template and no file `{}`", self.template);
            let hint =
                format!("write one of {known}, a folder with a chat template, or a `.jinja`");
            problems.push(OptionProblem::new("dialogue.template", message, hint));
        }
        if let Some(MediaOptions { tokens, placeholder, .. }) = &self.media {
            if !(1..self.length.max(2)).contains(tokens) {
                let length = self.length;
                let message = format!("{tokens} placeholders do not fit into a length of {length}");
                let hint =
                    "give as many as the language model is given rows, and a longer `length`";
                problems.push(OptionProblem::new("dialogue.media.tokens", message, hint));
            }
            if placeholder.is_some_and(|id| id < 0) {
                let message = "`placeholder` is below 0, but ids are numbered from 0";
                let hint = "write the language model's `placeholder`";
                problems.push(OptionProblem::new("dialogue.media.placeholder", message, hint));
            }
        }
        problems
    }
}

/// A letter for private use that stands for the placeholders until the dialogue is encoded.
const PLACE: char = '\u{f0fff}';

/// Dialogues that are ready to be read.
#[derive(Debug)]
pub(super) struct Dialogues {
    options: DialogueOptions,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    question: Tokenizer,
    spliced: Option<Spliced>,
}

impl Dialogues {
    pub(super) fn open(
        options: &DialogueOptions,
        tokenizers: &mut Tokenizers,
    ) -> Result<Self, TextError> {
        let tokenizer = tokenizers.open(&options.tokenizer)?;
        let question = options.question.tokenizer.as_ref().unwrap_or(&options.tokenizer);
        let question = tokenizers.open(question)?;
        let template = template(&options.template, &tokenizer)?;
        tokenizer.need(Special::Pad)?;
        question.need(Special::Pad)?;
        let spliced = options.media.as_ref().map(|media| {
            let beyond = i64::try_from(tokenizer.vocabulary_size()).unwrap_or(i64::MAX);
            let id = media.placeholder.unwrap_or(beyond);
            Spliced { letter: PLACE, ids: vec![id; media.tokens] }
        });
        let options = options.clone();
        Ok(Self { options, tokenizer, template, question, spliced })
    }

    fn talk(&self, entry: &Entry) -> Result<Talk, String> {
        let from = &self.options.from;
        let value = entry.record.get(from).ok_or_else(|| {
            let known: Vec<String> = entry.record.names().map(|name| format!("`{name}`")).collect();
            format!("no field `{from}`; its fields are {}", known.join(", "))
        })?;
        Talk::read(from, value, &self.options.about)
    }

    /// What is wrong with an entry, before anything is read from it.
    pub(super) fn check(&self, entry: &Entry) -> Result<(), String> {
        self.talk(entry).map(drop)
    }

    /// Ids of a dialogue and of its question.
    pub(super) fn read(&self, entry: &Entry, draw: &Key, rows: &mut Rows) -> Result<(), String> {
        let mut talk = self.talk(entry)?;
        if self.options.pick == Turns::Random {
            let chosen = draw.rng().below(talk.exchanges.len());
            talk.exchanges = vec![talk.exchanges.swap_remove(chosen)];
        }
        let done = self.encode(&mut talk).map_err(|error| error.to_string())?;
        let asked = self.ask(&talk).map_err(|error| error.to_string())?;
        let all = [
            ("dialogue", done.ids),
            ("dialogue_mask", done.mask),
            ("dialogue_labels", done.labels),
            ("question", asked.ids),
            ("question_mask", asked.mask),
        ];
        rows.extend(all.map(|(port, ids)| (port.to_owned(), ids)));
        Ok(())
    }

    /// The instruction where there is one, else the first question.
    fn ask(&self, talk: &Talk) -> Result<Batch, TextError> {
        let QuestionOptions { length, clean, .. } = self.options.question;
        let first = talk.exchanges.first().map_or("", |exchange| exchange.question.as_str());
        let text = if talk.instruction.is_empty() { first } else { &talk.instruction };
        let text = if clean { clean_caption(text) } else { text.to_owned() };
        self.question.batch(&[text], &Layout::fixed(length))
    }

    /// Encodes a dialogue; takes away its oldest turns until it fits.
    fn encode(&self, talk: &mut Talk) -> Result<Dialogue, TextError> {
        let layout = Layout { length: Length::Fixed(self.options.length), ..Layout::default() };
        loop {
            let messages = self.messages(talk);
            let spliced = self.spliced.as_ref();
            let made = self.template.encode_spliced(&self.tokenizer, &messages, spliced, &layout);
            let too_long = matches!(made, Err(TextError::TooLong { .. }));
            if too_long && self.options.long == TooLong::Cut && talk.exchanges.len() > 1 {
                talk.exchanges.remove(0);
                continue;
            }
            let made = made?;
            if let Some(Spliced { ids, .. }) = spliced {
                let found = made.ids.iter().filter(|id| **id == ids[0]).count();
                if found != ids.len() {
                    let (id, count) = (ids[0], ids.len());
                    return Err(TextError::Argument(format!(
                        "the dialogue holds the placeholder {id} {found} times instead of {count}; \
                         name a `placeholder` that no text holds"
                    )));
                }
            }
            return Ok(made);
        }
    }

    fn messages(&self, talk: &Talk) -> Vec<Message> {
        let plain = |text: &str| text.replace(PLACE, "");
        let mut messages = Vec::new();
        let system = [self.options.system.as_deref().unwrap_or(""), &talk.instruction];
        let system = system.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>();
        if !system.is_empty() {
            messages.push(Message::new(Role::System, plain(&system.join(" "))));
        }
        for (number, Exchange { question, answer }) in talk.exchanges.iter().enumerate() {
            let mut asked = plain(question);
            if let Some(MediaOptions { tag, close, .. }) = &self.options.media
                && number == 0
            {
                let between = if asked.is_empty() { "" } else { "\n" };
                asked = format!("{}{PLACE}{}{between}{asked}", plain(tag), plain(close));
            }
            messages.push(Message::new(Role::User, asked));
            messages.push(Message::new(Role::Assistant, plain(answer)));
        }
        messages
    }
}

/// A built-in template, that of a folder, or a file. Tokens that the tokenizer lacks are replaced by
/// its own ones of the same role.
fn template(name: &str, tokenizer: &Tokenizer) -> Result<ChatTemplate, TextError> {
    let path = PathBuf::from(name);
    let template = if BUILT_IN.contains(&name) {
        ChatTemplate::built_in(name)?
    } else if path.is_dir() {
        ChatTemplate::open(&path)?
    } else {
        let source = std::fs::read_to_string(&path).map_err(|error| TextError::Unreadable {
            file: path.clone(),
            reason: format!("{error}; write a built-in template, such as `vicuna`, or a `.jinja`"),
        })?;
        ChatTemplate::new(name, &source)?
    };
    let roles = [("bos_token", Special::Bos), ("eos_token", Special::Eos)];
    let own = |template: ChatTemplate, (variable, role): (&str, Special)| {
        let known = template.variable(variable).and_then(|token| tokenizer.id(token)).is_some();
        let text = tokenizer.special_text(role).unwrap_or_default();
        if known { template } else { template.with(variable, text) }
    };
    Ok(roles.into_iter().fold(template, own))
}
