//! Questions and answers of a record, in the forms that data sets have them.

use serde_json::{Map, Value};

/// A question and its answer. A question may be empty, as in captions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Exchange {
    pub(super) question: String,
    pub(super) answer: String,
}

/// What a record says of a dialogue; at least one exchange.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Talk {
    /// What VideoChat2 tells the system and the Q-Former; often empty.
    pub(super) instruction: String,
    pub(super) exchanges: Vec<Exchange>,
}

/// Words for the place of the picture, which stands at the beginning of the first question.
const MARKS: [&str; 4] = ["<image>", "<video>", "<Image>", "<Video>"];

impl Talk {
    /// Reads the value of the field `from`; of turns that have a field `about`, those that are about one
    /// of these things, or all when nothing is named.
    pub(super) fn read(from: &str, value: &Value, about: &[String]) -> Result<Self, String> {
        let one;
        let turns = match value {
            Value::Array(turns) => turns.as_slice(),
            value => {
                one = [value.clone()];
                &one
            }
        };
        let mut talk = Self { instruction: String::new(), exchanges: Vec::new() };
        let mut asked = None;
        let meant = |turn: &Value| {
            let thing = turn.get("about").and_then(Value::as_str).unwrap_or_default();
            about.is_empty() || about.iter().any(|named| named == thing)
        };
        for (number, turn) in turns.iter().enumerate().filter(|(_, turn)| meant(turn)) {
            let place = |what: &str| format!("`{from}`, turn {number}: {what}");
            talk.turn(turn, &mut asked).map_err(|what| place(&what))?;
        }
        if asked.is_some() {
            return Err(format!("`{from}` ends with a question that has no answer"));
        }
        if talk.exchanges.is_empty() {
            let things = if about.is_empty() {
                String::new()
            } else {
                format!(" about {}", about.join(", "))
            };
            return Err(format!("`{from}` has no question{things}"));
        }
        Ok(talk)
    }

    fn turn(&mut self, turn: &Value, asked: &mut Option<String>) -> Result<(), String> {
        if let Value::String(caption) = turn {
            return self.exchange(String::new(), caption.trim().to_owned());
        }
        let Value::Object(turn) = turn else {
            return Err(format!("{} is no object with a question and an answer", brief(turn)));
        };
        for (question, answer) in [("question", "answer"), ("q", "a")] {
            if turn.contains_key(answer) {
                if self.exchanges.is_empty() && turn.contains_key("i") {
                    self.instruction = text(turn, "i")?;
                }
                let question =
                    if turn.contains_key(question) { text(turn, question)? } else { String::new() };
                return self.exchange(question, text(turn, answer)?);
            }
        }
        for (who, what) in [("from", "value"), ("role", "content")] {
            if !turn.contains_key(who) {
                continue;
            }
            let said = text(turn, what)?;
            return match (text(turn, who)?.as_str(), asked.take()) {
                ("human" | "user", None) => {
                    *asked = Some(said);
                    Ok(())
                }
                ("gpt" | "assistant", Some(question)) => self.exchange(question, said),
                ("system", None) if self.exchanges.is_empty() => {
                    self.instruction = said;
                    Ok(())
                }
                ("human" | "user" | "gpt" | "assistant" | "system", _) => {
                    Err("`human` and `gpt` must take turns, `human` first".to_owned())
                }
                (other, _) => {
                    Err(format!("`{who}` is `{other}`, none of `human`, `gpt`, `system`"))
                }
            };
        }
        Err("it has neither `question` and `answer`, nor `q` and `a`, nor `from` and `value`"
            .into())
    }

    fn exchange(&mut self, mut question: String, answer: String) -> Result<(), String> {
        if answer.is_empty() {
            return Err("the answer is empty".to_owned());
        }
        for mark in MARKS {
            question = question.replace(mark, "");
        }
        self.exchanges.push(Exchange { question: question.trim().to_owned(), answer });
        Ok(())
    }
}

/// A text or a number.
fn text(turn: &Map<String, Value>, name: &str) -> Result<String, String> {
    match turn.get(name) {
        Some(Value::String(text)) => Ok(text.trim().to_owned()),
        Some(value @ (Value::Number(_) | Value::Bool(_))) => Ok(value.to_string()),
        Some(Value::Null) => Ok(String::new()),
        Some(value) => Err(format!("`{name}` is {}, not a text", brief(value))),
        None => Err(format!("`{name}` is missing")),
    }
}

/// The beginning of a value, for a message.
fn brief(value: &Value) -> String {
    let text = value.to_string();
    let short: String = text.chars().take(40).collect();
    if short.len() < text.len() { format!("{short}…") } else { short }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_form_gives_the_same_exchanges() {
        let pairs = |list: &[(&str, &str)]| -> Vec<Exchange> {
            let one = |(question, answer): &(&str, &str)| Exchange {
                question: (*question).to_owned(),
                answer: (*answer).to_owned(),
            };
            list.iter().map(one).collect()
        };
        let two = pairs(&[("How many?", "3"), ("Where?", "Left.")]);
        for value in [
            json!([{ "question": "How many?", "answer": 3, "about": "count" },
                   { "question": "Where?", "answer": "Left.", "choices": ["a"] }]),
            json!([{ "q": "How many?", "a": "3" }, { "q": "Where?", "a": "Left." }]),
            json!([{ "from": "human", "value": "<image>\nHow many?" },
                   { "from": "gpt", "value": "3" },
                   { "from": "human", "value": "Where?" }, { "from": "gpt", "value": "Left." }]),
            json!([{ "role": "user", "content": "How many?\n<video>" },
                   { "role": "assistant", "content": "3" },
                   { "role": "user", "content": "Where?" },
                   { "role": "assistant", "content": "Left." }]),
        ] {
            assert_eq!(Talk::read("x", &value, &[]).unwrap().exchanges, two, "{value}");
        }
        let captions = Talk::read("captions", &json!(["A man runs.", "He runs."]), &[]).unwrap();
        assert_eq!(captions.exchanges, pairs(&[("", "A man runs."), ("", "He runs.")]));
        assert_eq!(Talk::read("caption", &json!("He runs."), &[]).unwrap().exchanges.len(), 1);
        let told = json!([{ "i": "Look closely.", "q": "", "a": "A man runs." }]);
        let told = Talk::read("QA", &told, &[]).unwrap();
        assert_eq!(told.instruction, "Look closely.");
        assert_eq!(told.exchanges, pairs(&[("", "A man runs.")]));
    }

    #[test]
    fn turns_are_chosen_by_what_they_are_about() {
        let value = json!([{ "question": "a", "answer": "b", "about": "sound" },
                           { "question": "c", "answer": "d", "about": "look" }]);
        let about = |thing: &str| Talk::read("x", &value, &[thing.to_owned()]);
        assert_eq!(about("look").unwrap().exchanges[0].answer, "d");
        assert!(about("taste").unwrap_err().contains("no question about taste"));
    }

    #[test]
    fn what_is_no_dialogue_says_where() {
        for (value, part) in [
            (json!([]), "`x` has no question"),
            (json!(["", "a"]), "turn 0: the answer is empty"),
            (json!([7]), "turn 0: 7 is no object"),
            (json!([{ "question": "a", "answer": "" }]), "turn 0: the answer is empty"),
            (json!([{ "question": "a" }]), "neither `question` and `answer`"),
            (json!([{ "from": "gpt", "value": "a" }]), "must take turns"),
            (json!([{ "from": "human", "value": "a" }]), "no answer"),
            (json!([{ "from": "cat", "value": "a" }]), "none of `human`, `gpt`"),
            (json!([{ "q": ["a"], "a": "b" }]), "`q` is [\"a\"], not a text"),
        ] {
            let error = Talk::read("x", &value, &[]).unwrap_err();
            assert!(error.contains(part), "{value}: {error}");
        }
    }
}
