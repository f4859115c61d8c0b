//! Captions and dialogues to ids, as a data source would make them.

use std::path::Path;

use modules::rng::Key;
use modules::tokenizer::{
    Batch, ChatTemplate, Corrupted, Dialogue, Layout, MaskedText, Message, Role, TextError,
    Tokenizer, clean_caption,
};

/// Captions of a BERT text tower: cleaned, 32 tokens each, half of them corrupted.
pub fn captions(folder: &Path, captions: &[&str]) -> Result<(Batch, Corrupted), TextError> {
    let tokenizer = Tokenizer::open(folder)?;
    tokenizer.check_vocabulary(30_522)?;
    let clean: Vec<String> = captions.iter().map(|caption| clean_caption(caption)).collect();
    let batch = tokenizer.batch(&clean, &Layout::fixed(32))?;
    let key = Key::new(42, "captions").with_number(7);
    let corrupted = MaskedText::new(&tokenizer, 0.5)?.batch(&batch, &key);
    Ok((batch, corrupted))
}

/// A dialogue for training on its answer: at most 512 tokens, or an error with both numbers.
pub fn dialogue(folder: &Path, question: &str, answer: &str) -> Result<Dialogue, TextError> {
    let tokenizer = Tokenizer::open(folder)?;
    let template = ChatTemplate::built_in("vicuna")?;
    let messages = [Message::new(Role::User, question), Message::new(Role::Assistant, answer)];
    let layout = Layout { context: Some(512), ..Layout::default() };
    template.encode_dialogue(&tokenizer, &messages, &layout)
}

/// The text of ids that a model generates one by one.
pub fn answer(tokenizer: &Tokenizer, generated: &[i64]) -> Result<String, TextError> {
    let mut stream = tokenizer.stream(true);
    let mut text = String::new();
    for &id in generated {
        text.push_str(&stream.push(id)?);
    }
    text.push_str(&stream.finish()?);
    Ok(text)
}
