//! Tokenizers and dialogues as wholes: what comes back, what is labelled, what strangers send.

use std::path::PathBuf;

use modules::tokenizer::{
    BUILT_IN, ChatTemplate, IGNORED, Layout, Message, Role, Side, Special, Tokenizer,
};
use proptest::prelude::*;
use tests::command::root;

const FILES: [&str; 3] = ["tokenizer.json", "tokenizer_llama3.json", "tokenizer_clip.json"];

fn folder() -> PathBuf {
    root().join("tests/golden/tokenizer_llama_bpe")
}

fn open(file: &str) -> Tokenizer {
    Tokenizer::open(folder().join(file)).unwrap()
}

fn streamed(tokenizer: &Tokenizer, ids: &[i64], skip: bool) -> String {
    let mut stream = tokenizer.stream(skip);
    let mut text = String::new();
    for &id in ids {
        text += &stream.push(id).unwrap();
    }
    text + &stream.finish().unwrap()
}

/// Texts with what is hard: blanks, marks, several bytes, several letters a character.
fn text() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        "\\PC{0,6}",
        "[a-z]{1,8}",
        "[ \n\t\r]{1,3}",
        Just("🙂".to_owned()),
        Just("e\u{301}日本\u{1f468}\u{200d}\u{1f469}".to_owned()),
        Just("\u{fffd}".to_owned()),
    ];
    prop::collection::vec(part, 0..8).prop_map(|parts| parts.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn bytes_come_back_as_they_were(text in text()) {
        let tokenizer = open("tokenizer_llama3.json");
        let ids = tokenizer.encode(text.as_str(), true).unwrap().ids;
        prop_assert_eq!(tokenizer.decode(&ids, true).unwrap(), text.clone());
        prop_assert_eq!(streamed(&tokenizer, &ids, true), text);
    }

    #[test]
    fn a_stream_gives_what_decoding_gives(
        text in text(),
        ids in prop::collection::vec(0..500i64, 0..40),
        skip: bool,
    ) {
        for file in FILES {
            let tokenizer = open(file);
            let whole = tokenizer.encode(text.as_str(), true).unwrap().ids;
            prop_assert_eq!(
                streamed(&tokenizer, &whole, skip),
                tokenizer.decode(&whole, skip).unwrap()
            );
            // Ids as a model without training gives them.
            prop_assert_eq!(
                streamed(&tokenizer, &ids, skip),
                tokenizer.decode(&ids, skip).unwrap()
            );
        }
    }

    #[test]
    fn labels_decode_to_the_answers(
        answers in prop::collection::vec(text(), 1..4),
        questions in prop::collection::vec(text(), 4),
        template in prop::sample::select(&BUILT_IN[..]),
    ) {
        let mut messages = vec![Message::new(Role::System, "Be brief.")];
        for (question, answer) in questions.iter().zip(&answers) {
            messages.push(Message::new(Role::User, question));
            messages.push(Message::new(Role::Assistant, answer));
        }
        let file = if template == "llama3" { "tokenizer_llama3.json" } else { "tokenizer.json" };
        let tokenizer = open(file);
        let template = ChatTemplate::built_in(template).unwrap();
        let dialogue =
            template.encode_dialogue(&tokenizer, &messages, &Layout::default()).unwrap();
        let letters: Vec<char> = dialogue.text.chars().collect();
        let spoken = answers.iter().filter(|answer| !answer.trim().is_empty());
        prop_assert_eq!(dialogue.answers.len(), spoken.clone().count());
        for (span, answer) in dialogue.answers.iter().zip(spoken) {
            let labelled: String = letters[span.clone()].iter().collect();
            prop_assert!(labelled.trim_start().starts_with(answer.trim()), "{labelled:?}");
        }
        // Answers and ends of turns, and at most the letters that share a token with them.
        let labels: Vec<i64> =
            dialogue.labels.iter().copied().filter(|&label| label != IGNORED).collect();
        let decoded = tokenizer.decode(&labels, false).unwrap();
        let mut rest = decoded.as_str();
        for span in &dialogue.answers {
            let labelled: String = letters[span.clone()].iter().collect();
            rest = rest.trim_start();
            let at = rest.find(labelled.trim());
            prop_assert!(at.is_some_and(|at| at <= 2), "{labelled:?} in {rest:?}");
            rest = &rest[at.unwrap() + labelled.trim().len()..];
        }
        for (label, id) in dialogue.labels.iter().zip(&dialogue.ids) {
            prop_assert!(label == id || *label == IGNORED);
        }
    }

    #[test]
    fn a_damaged_tokenizer_is_an_error_or_a_tokenizer(
        file in prop::sample::select(&FILES[..]),
        cut in 0.0..1.0f64,
        at in 0.0..1.0f64,
        byte: u8,
    ) {
        let whole = std::fs::read(folder().join(file)).unwrap();
        let temporary = tempfile::tempdir().unwrap();
        let place = temporary.path().join("tokenizer.json");
        std::fs::write(&place, &whole[..(whole.len() as f64 * cut) as usize]).unwrap();
        prop_assert!(Tokenizer::open(&place).is_err());
        let mut changed = whole;
        // Beginning and end are where the parts are described.
        let edge = if at < 0.5 { at * 4000.0 } else { changed.len() as f64 - at * 1000.0 };
        changed[edge as usize] = byte;
        std::fs::write(&place, changed).unwrap();
        if let Ok(tokenizer) = Tokenizer::open(&place) {
            let _ = tokenizer.encode("A man é 🙂 <0x0A>", true).map(|encoded| {
                let _ = tokenizer.decode(&encoded.ids, true);
            });
        }
    }
}

#[test]
fn the_end_of_a_turn_is_labelled() {
    let messages = [
        Message::new(Role::User, "What happens?"),
        Message::new(Role::Assistant, " A dog runs.\n"),
        Message::new(Role::User, "And then?"),
        Message::new(Role::Assistant, "It sleeps."),
    ];
    for (template, file, expected) in [
        ("llama2", "tokenizer.json", ["A dog runs. </s>", "It sleeps. </s>"]),
        ("mistral", "tokenizer.json", [" A dog runs.\n</s>", "It sleeps.</s>"]),
        ("vicuna", "tokenizer.json", [" A dog runs.\n</s>", "It sleeps.</s>"]),
        ("llama3", "tokenizer_llama3.json", ["A dog runs.<|eot_id|>", "It sleeps.<|eot_id|>"]),
        // This vocabulary has no such token, so the turn ends with the answer.
        ("qwen2", "tokenizer.json", [" A dog runs.\n", "It sleeps."]),
    ] {
        let (template, tokenizer) = (ChatTemplate::built_in(template).unwrap(), open(file));
        let layout = Layout { padding: Side::Left, ..Layout::fixed(300) };
        let dialogue = template.encode_dialogue(&tokenizer, &messages, &layout).unwrap();
        let letters: Vec<char> = dialogue.text.chars().collect();
        let labelled: Vec<String> =
            dialogue.answers.iter().map(|span| letters[span.clone()].iter().collect()).collect();
        assert_eq!(labelled, expected);
        assert_eq!([dialogue.ids.len(), dialogue.mask.len(), dialogue.labels.len()], [300; 3]);
        let pad = tokenizer.special(Special::Pad).unwrap();
        assert_eq!((dialogue.ids[0], dialogue.mask[0], dialogue.labels[0]), (pad, 0, IGNORED));
        let ends = messages.iter().filter(|message| message.role == Role::Assistant).count();
        let end = tokenizer.special(Special::Eos).filter(|_| expected[0].ends_with("</s>"));
        let count = dialogue.labels.iter().filter(|&&label| Some(label) == end).count();
        assert_eq!(count, if end.is_some() { ends } else { 0 });
    }
}

#[test]
fn generation_blocks_say_what_is_labelled() {
    let source = "{% for m in messages %}\n    {% if m.role == 'assistant' %}\n[A] \
                  {%- generation -%} {{ m.content | upper }}</s>\n        {%- endgeneration %}\n\
                  {% else %}[U] {{ m.content }}\n{% endif %}\n{% endfor %}";
    let template = ChatTemplate::new("blocks", source).unwrap();
    let messages =
        [Message::new(Role::User, "What happens?"), Message::new(Role::Assistant, "A dog runs.")];
    let tokenizer = open("tokenizer.json");
    let layout = Layout::default();
    let dialogue = template.encode_dialogue(&tokenizer, &messages, &layout).unwrap();
    let letters: Vec<char> = dialogue.text.chars().collect();
    assert_eq!(dialogue.answers.len(), 1);
    let labelled: String = letters[dialogue.answers[0].clone()].iter().collect();
    assert_eq!(labelled, "A DOG RUNS.</s>");
    // Without blocks, a template that rewrites answers cannot be labelled.
    let source = source.replace("{%- generation -%}", "").replace("{%- endgeneration %}", "");
    let template = ChatTemplate::new("upper", &source).unwrap();
    let dialogue = template.encode_dialogue(&tokenizer, &messages, &layout);
    let answers = dialogue.map(|dialogue| dialogue.answers);
    assert!(answers.is_err_and(|error| error.to_string().contains("message 1 beyond")));
}

#[test]
fn a_dialogue_that_is_too_long_is_cut_or_refused() {
    let messages = [Message::new(Role::User, "A man"), Message::new(Role::Assistant, "A dog")];
    let (template, tokenizer) = (ChatTemplate::built_in("llama2").unwrap(), open("tokenizer.json"));
    let whole = template.encode_dialogue(&tokenizer, &messages, &Layout::default()).unwrap();
    let cut = template.encode_dialogue(&tokenizer, &messages, &Layout::fixed(5)).unwrap();
    assert_eq!(cut.ids, whole.ids[..5]);
    assert_eq!(cut.labels, [IGNORED; 5]);
    let refuse = Layout { context: Some(5), ..Layout::default() };
    let error = template.encode_dialogue(&tokenizer, &messages, &refuse).unwrap_err();
    let said = format!("{} tokens, the length is 5", whole.ids.len());
    assert!(error.to_string().contains(&said), "{error}");
}
