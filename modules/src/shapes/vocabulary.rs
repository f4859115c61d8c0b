//! The words of the world as tokenizers: BERT's `vocab.txt`, and a `tokenizer.json` for language
//! models. Both number the same tokens alike.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::phrases;
use super::world::MOTIONS;

/// Special tokens, first in the vocabulary: those of BERT, then those of language models.
pub const SPECIAL: [&str; 11] = [
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<s>", "</s>", "<Video>", "</Video>", "<Image>",
    "</Image>",
];

/// What people write around the world's texts: prompts, instructions, names of classes.
const AROUND: &str = "\
a video of a clip of a picture of a photo of an image of this is the scene where there are objects \
a sound of audio someone something shows showing who which when why can you please hear describe \
tell explain summarize watch listen question answer options choose pick from following best right \
correct true false in on at with and or not be it its he she they we i me my your human person man \
woman action playing doing kind recognize classification user assistant system helpful about short \
sentence word words caption video audio speech black white grey dark light move rotate turn grow \
shrink orbit circle bounce slide spin rise sink shape colour color size frame frames second seconds \
start end begin ends begins starts before after during while between until four five six seven \
eight nine ten zero first last next";

/// How a dialogue is written.
const CHAT_TEMPLATE: &str = "\
{{ bos_token }}{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\
{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}{% endfor %}\
{% if add_generation_prompt %}assistant:{% endif %}";

/// Every word that the world can say, and those around it, each once, in a fixed order that
/// neither counts nor seeds change.
pub fn words() -> Vec<String> {
    let mut texts = phrases::tables();
    texts.extend(MOTIONS.map(|name| name.replace('_', " ")));
    texts.push(AROUND.to_owned());
    let mut seen = BTreeSet::new();
    let words = texts.iter().flat_map(|text| split(text));
    words.filter(|word| seen.insert(word.clone())).collect()
}

/// The words of a text: letters and digits that belong together, without marks.
fn split(text: &str) -> Vec<String> {
    let parts = text.split(|letter: char| !letter.is_alphanumeric());
    parts.filter(|word| !word.is_empty()).map(str::to_lowercase).collect()
}

/// All tokens by id: special ones, words, marks, and letters and digits, of which any other text
/// in ASCII is made.
pub fn vocabulary() -> Vec<String> {
    let mut tokens: Vec<String> = SPECIAL.map(str::to_owned).to_vec();
    tokens.extend(words());
    let marks = (b'!'..=b'~').filter(u8::is_ascii_punctuation);
    let letters = || (b'0'..=b'9').chain(b'a'..=b'z').map(char::from);
    tokens.extend(marks.map(|mark| char::from(mark).to_string()));
    tokens.extend(letters().map(String::from));
    tokens.extend(letters().map(|letter| format!("##{letter}")));
    let mut seen = BTreeSet::new();
    tokens.retain(|token| seen.insert(token.clone()));
    tokens
}

/// `vocab.txt`: a token a line.
pub(super) fn vocab_txt() -> Vec<u8> {
    (vocabulary().join("\n") + "\n").into_bytes()
}

/// `tokenizer.json`: the same tokens; a text begins with `<s>`.
pub(super) fn tokenizer_json() -> Vec<u8> {
    let ids: Map<String, Value> =
        vocabulary().into_iter().enumerate().map(|(id, token)| (token, id.into())).collect();
    let added: Vec<Value> = SPECIAL
        .iter()
        .enumerate()
        .map(|(id, token)| {
            json!({
                "id": id, "content": token, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true,
            })
        })
        .collect();
    let begin = json!({ "SpecialToken": { "id": "<s>", "type_id": 0 } });
    let text = |id: &str| json!({ "Sequence": { "id": id, "type_id": 0 } });
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": {
            "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
            "strip_accents": null, "lowercase": true,
        },
        "pre_tokenizer": { "type": "BertPreTokenizer" },
        "post_processor": {
            "type": "TemplateProcessing", "single": [begin, text("A")],
            "pair": [begin, text("A"), text("B")],
            "special_tokens": { "<s>": { "id": "<s>", "ids": [ids["<s>"]], "tokens": ["<s>"] } },
        },
        "decoder": { "type": "WordPiece", "prefix": "##", "cleanup": true },
        "model": {
            "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": ids,
        },
    });
    pretty(&json)
}

/// `tokenizer_config.json`: roles of special tokens, and how a dialogue is written.
pub(super) fn tokenizer_config_json() -> Vec<u8> {
    pretty(&json!({
        "tokenizer_class": "PreTrainedTokenizerFast", "do_lower_case": true,
        "bos_token": "<s>", "eos_token": "</s>", "pad_token": "[PAD]", "unk_token": "[UNK]",
        "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]",
        "additional_special_tokens": ["<Video>", "</Video>", "<Image>", "</Image>"],
        "clean_up_tokenization_spaces": true, "model_max_length": 2048,
        "chat_template": CHAT_TEMPLATE,
    }))
}

fn pretty(json: &Value) -> Vec<u8> {
    let mut bytes = serde_json::to_vec_pretty(json).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}

/// Names and bytes of the files that a data set has for tokenizers.
pub(super) fn files() -> [(&'static str, Vec<u8>); 3] {
    [
        ("vocab.txt", vocab_txt()),
        ("tokenizer.json", tokenizer_json()),
        ("tokenizer_config.json", tokenizer_config_json()),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::{Options, record};
    use super::*;
    use crate::tokenizer::{ChatTemplate, IGNORED, Layout, Message, Role, Special, Tokenizer};

    fn folder() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, bytes) in files() {
            std::fs::write(dir.path().join(name), bytes).unwrap();
        }
        dir
    }

    /// Every text of a record.
    fn texts(value: &Value, into: &mut Vec<String>) {
        match value {
            Value::String(text) => into.push(text.clone()),
            Value::Array(list) => list.iter().for_each(|item| texts(item, into)),
            Value::Object(map) => {
                for (_, item) in map.iter().filter(|(name, _)| *name != "path") {
                    texts(item, into);
                }
            }
            _ => {}
        }
    }

    #[test]
    fn every_word_of_every_text_is_in_the_vocabulary() {
        let words = BTreeSet::from_iter(words());
        let tokens = Tokenizer::open(folder().path().join("vocab.txt")).unwrap();
        let all = Options { motions: 14, appearances: 24, size: 16, ..Options::default() };
        for sound in [true, false] {
            let options = Options { frames: 2, masks: false, sound, ..all.clone() };
            for (folder, count) in [("train", 336), ("untrimmed", 40)] {
                for number in 0..count {
                    let (record, _) = record::make(&options, folder, number);
                    let mut said = Vec::new();
                    texts(&serde_json::to_value(&record).unwrap(), &mut said);
                    for text in said {
                        for word in split(&text) {
                            let digits = word.chars().all(|letter| letter.is_ascii_digit());
                            // `about` and `split` name things for programs.
                            assert!(words.contains(&word) || digits || is_name(&text), "{text}");
                        }
                        let ids = tokens.encode(text.as_str(), true).unwrap().ids;
                        assert!(!ids.contains(&tokens.need(Special::Unk).unwrap()), "{text}");
                    }
                }
            }
        }
    }

    fn is_name(text: &str) -> bool {
        let names = ["appearance", "motion", "count", "order", "before_after", "state_change"];
        let more =
            ["sound_kind", "sound_and_motion", "appearance_yes_no", "motion_yes_no", "train"];
        names.contains(&text) || more.contains(&text) || text == "test"
    }

    #[test]
    fn the_vocabulary_begins_as_that_of_bert_and_holds_each_token_once() {
        let tokens = vocabulary();
        assert_eq!(tokens[..5], ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]);
        assert_eq!(BTreeSet::from_iter(&tokens).len(), tokens.len());
        assert!(tokens.len() < 600, "{}", tokens.len());
        for token in ["disc", "moves", "hum", "twice", "?", "7", "##7", "q", "##q", "photo"] {
            assert!(tokens.iter().any(|known| known == token), "{token}");
        }
    }

    #[test]
    fn both_tokenizers_open_and_number_tokens_alike() {
        let dir = folder();
        let language = Tokenizer::open(dir.path()).unwrap();
        let bert = Tokenizer::open(dir.path().join("vocab.txt")).unwrap();
        assert_eq!(language.vocabulary_size(), bert.vocabulary_size());
        for (id, token) in vocabulary().iter().enumerate() {
            assert_eq!(language.id(token), Some(id as i64));
            assert_eq!(bert.id(token), Some(id as i64));
        }
        for role in Special::ALL {
            assert!(language.special(role).is_some(), "{role:?}");
        }
        let text = "A Red Star moves left; xyzzy-42, Élan!";
        let inner = language.encode(text, false).unwrap().ids;
        assert_eq!(bert.encode(text, false).unwrap().ids, inner);
        assert!(!inner.contains(&language.need(Special::Unk).unwrap()));
        assert_eq!(language.encode(text, true).unwrap().ids[0], language.id("<s>").unwrap());
        let said = language.decode(&inner, true).unwrap();
        assert_eq!(said, "a red star moves left ; xyzzy - 42, elan!");
    }

    #[test]
    fn a_dialogue_is_rendered_and_its_answers_are_labelled() {
        let dir = folder();
        let tokenizer = Tokenizer::open(dir.path()).unwrap();
        let template = ChatTemplate::open(dir.path()).unwrap();
        let messages = [
            Message::new(Role::User, "<Video></Video> what does the shape do?"),
            Message::new(Role::Assistant, "moves left"),
            Message::new(Role::User, "how many beats are heard?"),
            Message::new(Role::Assistant, "two"),
        ];
        let dialogue = template.encode_dialogue(&tokenizer, &messages, &Layout::default()).unwrap();
        assert_eq!(
            dialogue.text,
            "<s>user: <Video></Video> what does the shape do?\nassistant: moves left</s>\n\
             user: how many beats are heard?\nassistant: two</s>\n"
        );
        let labels: Vec<i64> =
            dialogue.labels.iter().copied().filter(|label| *label != IGNORED).collect();
        let expected = ["moves", "left", "</s>", "two", "</s>"];
        assert_eq!(labels, expected.map(|token| tokenizer.id(token).unwrap()));
        assert_eq!(dialogue.ids[3], tokenizer.id("<Video>").unwrap());
        let prompt = template.render(&messages[..1], true).unwrap();
        assert!(prompt.ends_with("?\nassistant:"), "{prompt}");
    }
}
