//! Dialogues to text by templates in Jinja.

use std::collections::BTreeMap;
use std::path::Path;

use minijinja::machinery::{self, CodeGenerator};
use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, Value};
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::error::TextError;
use super::python::Date;
use super::special::{Special, declared};
use super::{bounds, files, python};

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Says how the assistant should be.
    System,
    /// Asks.
    User,
    /// Answers; what a model learns to say.
    Assistant,
}

impl Role {
    /// The name that templates know.
    pub fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

/// One turn of a dialogue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said.
    pub content: String,
}

impl Message {
    /// A turn.
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Self { role, content: content.into() }
    }
}

/// Names of the templates that are built in.
pub const BUILT_IN: [&str; 5] = ["llama2", "llama3", "mistral", "qwen2", "vicuna"];

/// Largest source of a template, in bytes.
const LARGEST: usize = 1 << 20;

/// A template that makes one text of a dialogue.
#[derive(Debug, Clone, PartialEq)]
pub struct ChatTemplate {
    name: String,
    source: String,
    variables: BTreeMap<String, Json>,
    date: Option<Date>,
    blocks: bool,
}

impl ChatTemplate {
    /// The template of a folder: `chat_template.jinja`, else `chat_template` of
    /// `tokenizer_config.json`, of several the one named `default`.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self, TextError> {
        Self::open_named(folder, "default")
    }

    /// The template of a folder with this name.
    pub fn open_named(folder: impl AsRef<Path>, name: &str) -> Result<Self, TextError> {
        let folder = folder.as_ref();
        let config = folder.join("tokenizer_config.json");
        let json = if config.is_file() { files::read_json(&config)? } else { Json::Null };
        let mut sources = Vec::new();
        let file = folder.join("chat_template.jinja");
        if file.is_file() {
            sources.push(("default".to_owned(), files::read_text(&file)?));
        }
        match &json["chat_template"] {
            Json::String(source) => sources.push(("default".to_owned(), source.clone())),
            Json::Array(list) => {
                for entry in list {
                    let (Some(name), Some(source)) =
                        (entry["name"].as_str(), entry["template"].as_str())
                    else {
                        let reason = "`chat_template` is a list of objects with `name` and \
                                      `template`"
                            .to_owned();
                        return Err(TextError::Malformed { file: config, reason });
                    };
                    sources.push((name.to_owned(), source.to_owned()));
                }
            }
            _ => {}
        }
        if sources.is_empty() {
            let reason = "the folder has no chat_template.jinja and no `chat_template` in \
                          tokenizer_config.json; use a built-in template"
                .to_owned();
            return Err(TextError::Unreadable { file: folder.to_owned(), reason });
        }
        let known = sources.iter().map(|(name, _)| format!("`{name}`")).collect::<Vec<_>>();
        let Some((_, source)) = sources.into_iter().find(|(known, _)| known == name) else {
            return Err(TextError::NoTemplate { name: name.to_owned(), known: known.join(", ") });
        };
        let mut template = Self::new(name, &source)?;
        let map = folder.join("special_tokens_map.json");
        let map = if map.is_file() { files::read_json(&map)? } else { Json::Null };
        for role in Special::ALL {
            if let Some(token) = declared(&map, role).or_else(|| declared(&json, role)) {
                template = template.with(&format!("{}_token", role.name()), token);
            }
        }
        Ok(template)
    }

    /// A template that is built in; [`BUILT_IN`] names them.
    pub fn built_in(name: &str) -> Result<Self, TextError> {
        let (source, bos, eos) = match name {
            "llama2" => (include_str!("templates/llama2.jinja"), "<s>", "</s>"),
            "llama3" => (include_str!("templates/llama3.jinja"), "<|begin_of_text|>", "<|eot_id|>"),
            "mistral" => (include_str!("templates/mistral.jinja"), "<s>", "</s>"),
            "qwen2" => (include_str!("templates/qwen2.jinja"), "", "<|im_end|>"),
            "vicuna" => (include_str!("templates/vicuna.jinja"), "<s>", "</s>"),
            _ => {
                let known = BUILT_IN.map(|name| format!("`{name}`")).join(", ");
                return Err(TextError::NoTemplate { name: name.to_owned(), known });
            }
        };
        Ok(Self::new(name, source)?.with("bos_token", bos).with("eos_token", eos))
    }

    /// A template of this source; the name stands in messages.
    pub fn new(name: &str, source: &str) -> Result<Self, TextError> {
        let failed = |reason| TextError::Template { template: name.to_owned(), reason };
        if source.len() > LARGEST {
            return Err(failed(format!("it has more than {LARGEST} bytes")));
        }
        let (source, blocks) = python::generation_blocks(source);
        let explained = |error: minijinja::Error| failed(error.to_string());
        let syntax = syntax().map_err(explained)?;
        let source = bounds::unfolded(&source, syntax.clone());
        machinery::parse(&source, name, syntax).map_err(explained)?;
        let (name, variables) = (name.to_owned(), BTreeMap::new());
        Ok(Self { name, source, variables, date: None, blocks })
    }

    /// Sets a variable that the template may ask for, such as `bos_token`.
    pub fn with(mut self, name: &str, value: impl Into<Json>) -> Self {
        self.variables.insert(name.to_owned(), value.into());
        self
    }

    /// A variable that is a text.
    pub fn variable(&self, name: &str) -> Option<&str> {
        self.variables.get(name).and_then(Json::as_str)
    }

    /// Gives the template a date, in `strftime_now`. Without one that function is undefined, so
    /// that the same dialogue is the same text on every day.
    pub fn dated(mut self, year: i32, month: u32, day: u32) -> Self {
        self.date = Some((year, month, day));
        self
    }

    /// The text of a dialogue; `add_generation_prompt` ends it where an answer begins.
    pub fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<String, TextError> {
        self.run(messages, add_generation_prompt, None)
    }

    /// The name that messages show.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether answers stand in `{% generation %}` blocks.
    pub(super) fn has_blocks(&self) -> bool {
        self.blocks
    }

    /// Whether a letter stands in the source or in a variable.
    pub(super) fn holds(&self, letter: char) -> bool {
        let text = |value: &Json| value.as_str().is_some_and(|text| text.contains(letter));
        self.source.contains(letter) || self.variables.values().any(text)
    }

    /// Renders; `marks` are put around generation blocks.
    pub(super) fn run(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
        marks: Option<[char; 2]>,
    ) -> Result<String, TextError> {
        let mut environment = Environment::new();
        python::extend(&mut environment, self.date, marks);
        bounds::limit(&mut environment, messages.len());
        let mut context = self.variables.clone();
        context.insert("add_generation_prompt".to_owned(), add_generation_prompt.into());
        for absent in ["tools", "documents"] {
            context.entry(absent.to_owned()).or_insert(Json::Null);
        }
        let mut context: BTreeMap<String, Value> =
            context.iter().map(|(name, json)| (name.clone(), value(json))).collect();
        let turn = |message: &Message| {
            Value::from_pairs([("role", message.role.name()), ("content", &message.content)])
        };
        context.insert("messages".to_owned(), messages.iter().map(turn).collect());
        self.eval(&environment, Value::from(context)).map_err(|error| {
            let mut reason = error.to_string();
            if self.date.is_none() && reason.contains("strftime_now") {
                reason.push_str("; give the template a date");
            }
            TextError::Template { template: self.name.clone(), reason }
        })
    }

    fn eval(&self, environment: &Environment<'_>, root: Value) -> Result<String, minijinja::Error> {
        let tree = machinery::parse(&self.source, &self.name, syntax()?)?;
        let mut generator = CodeGenerator::new(&self.name, &self.source);
        generator.compile_stmt(&tree);
        let (instructions, blocks) = generator.finish();
        let instructions = bounds::measured(&instructions);
        let blocks = blocks.into_iter().map(|(name, block)| (name, bounds::measured(&block)));
        let blocks = blocks.collect();
        let mut text = String::new();
        let mut output = machinery::make_string_output(&mut text);
        machinery::eval(environment, &instructions, root, &blocks, &mut output, AutoEscape::None)?;
        Ok(text)
    }
}

/// JSON as a value of templates.
fn value(json: &Json) -> Value {
    match json {
        Json::Null => Value::from(()),
        Json::Bool(truth) => Value::from(*truth),
        Json::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(whole), _) => Value::from(whole),
            (None, number) => Value::from(number.unwrap_or_default()),
        },
        Json::String(text) => Value::from(text.as_str()),
        Json::Array(items) => items.iter().map(value).collect(),
        Json::Object(fields) => {
            Value::from_pairs(fields.iter().map(|(name, json)| (name.as_str(), value(json))))
        }
    }
}

/// Blanks around blocks go as in the library that templates are written for.
fn syntax() -> Result<SyntaxConfig, minijinja::Error> {
    SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()
}
