//! Answers to questions: choices and open answers, by kind of question, beside a blind baseline.

use std::collections::{BTreeMap, BTreeSet};

use super::{Error, percent, some};

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Answer {
    /// One of numbered choices.
    Choice(usize),
    /// Words.
    Open(String),
}

/// A question, what was answered and what is right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// What it asks about.
    pub kind: String,
    /// Number of choices, where it has some.
    pub choices: Option<usize>,
    /// The answer that was given.
    pub predicted: Answer,
    /// Right answers; several of open questions are alternatives.
    pub right: Vec<Answer>,
}

/// Accuracy of one kind of question, or of all.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Questions.
    pub count: usize,
    /// Percentage that is right.
    pub accuracy: f64,
    /// Percentage that the most frequent right answer gets, given to every question of a kind.
    pub majority: f64,
}

/// What came of an evaluation.
#[derive(Debug, Clone, PartialEq)]
pub struct Answers {
    /// All questions. Its majority answers each kind with that of the kind.
    pub all: Row,
    /// Mean accuracy over kinds.
    pub mean_of_kinds: f64,
    /// Each kind.
    pub kinds: BTreeMap<String, Row>,
}

/// An open answer as it is compared: lower case, without ASCII punctuation and the words a, an, the, one
/// space between words. An answer of nothing else keeps its lower-case words. Source: SQuAD's evaluation.
pub fn normalised(answer: &str) -> String {
    let lower = answer.to_lowercase();
    let plain: String = lower.chars().filter(|c| !c.is_ascii_punctuation()).collect();
    let words = plain.split_whitespace().filter(|word| !["a", "an", "the"].contains(word));
    let words: Vec<&str> = words.collect();
    if words.is_empty() {
        return lower.split_whitespace().collect::<Vec<_>>().join(" ");
    }
    words.join(" ")
}

fn compared(answer: &Answer) -> Answer {
    match answer {
        Answer::Choice(choice) => Answer::Choice(*choice),
        Answer::Open(words) => Answer::Open(normalised(words)),
    }
}

fn check(at: usize, item: &Item) -> Result<(), Error> {
    some(&format!("items[{at}].right"), &item.right)?;
    let choice = |answer: &Answer| matches!(answer, Answer::Choice(_));
    for answer in &item.right {
        if choice(answer) != choice(&item.predicted) {
            let [number, words] = ["a number", "words"];
            let (found, wanted) = if choice(answer) { (words, number) } else { (number, words) };
            return Err(Error::range(
                format!("items[{at}].predicted"),
                found,
                format!("{wanted}, as in `right`"),
            ));
        }
    }
    let named = [("predicted", &item.predicted)];
    for (field, answer) in named.into_iter().chain(item.right.iter().map(|one| ("right", one))) {
        if let (Answer::Choice(choice), Some(limit)) = (answer, item.choices)
            && *choice >= limit
        {
            return Err(Error::index(format!("items[{at}].{field}"), *choice, limit));
        }
    }
    Ok(())
}

/// Exact matches by kind.
pub fn evaluate(items: &[Item]) -> Result<Answers, Error> {
    some("items", items)?;
    let mut by_kind: BTreeMap<&str, (usize, Vec<BTreeSet<Answer>>)> = BTreeMap::new();
    for (at, item) in items.iter().enumerate() {
        check(at, item)?;
        let right: BTreeSet<Answer> = item.right.iter().map(compared).collect();
        let (hits, rights) = by_kind.entry(&item.kind).or_default();
        *hits += usize::from(right.contains(&compared(&item.predicted)));
        rights.push(right);
    }
    let (mut hits, mut blind) = (0, 0);
    let mut kinds = BTreeMap::new();
    for (kind, (of_kind, rights)) in by_kind {
        let most = majority(&rights);
        let count = rights.len();
        hits += of_kind;
        blind += most;
        let (accuracy, majority) = (percent(of_kind, count), percent(most, count));
        kinds.insert(kind.to_owned(), Row { count, accuracy, majority });
    }
    let [accuracy, majority] = [hits, blind].map(|hits| percent(hits, items.len()));
    let mean_of_kinds = super::mean(kinds.values().map(|row: &Row| row.accuracy));
    Ok(Answers { all: Row { count: items.len(), accuracy, majority }, mean_of_kinds, kinds })
}

/// Questions that the one best answer is right for.
fn majority(rights: &[BTreeSet<Answer>]) -> usize {
    let mut counts: BTreeMap<&Answer, usize> = BTreeMap::new();
    for answer in rights.iter().flatten() {
        *counts.entry(answer).or_default() += 1;
    }
    counts.into_values().max().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(kind: &str, predicted: &str, right: &[&str]) -> Item {
        let words = |text: &str| Answer::Open(text.to_owned());
        let right = right.iter().map(|text| words(text)).collect();
        Item { kind: kind.to_owned(), choices: None, predicted: words(predicted), right }
    }

    fn choice(kind: &str, predicted: usize, right: usize) -> Item {
        let right = vec![Answer::Choice(right)];
        Item {
            kind: kind.to_owned(),
            choices: Some(4),
            predicted: Answer::Choice(predicted),
            right,
        }
    }

    #[test]
    fn words_are_normalised() {
        for (answer, plain) in [
            ("The Red  square.", "red square"),
            ("an apple, a day!", "apple day"),
            ("theatre", "theatre"),
            ("it's", "its"),
            ("moves-left", "movesleft"),
            ("A", "a"),
            (" ?! ", "?!"),
            ("", ""),
            ("ÉCOLE", "école"),
        ] {
            assert_eq!(normalised(answer), plain, "{answer}");
        }
    }

    #[test]
    fn kinds_have_rows_of_their_own() {
        let items = [
            choice("motion", 1, 1),
            choice("motion", 1, 2),
            choice("motion", 0, 2),
            open("sound", "The two", &["two", "2"]),
            open("sound", "three", &["two", "2", "2."]),
        ];
        let found = evaluate(&items).unwrap();
        assert_eq!((found.all.count, found.all.accuracy, found.all.majority), (5, 40.0, 80.0));
        let (motion, sound) = (&found.kinds["motion"], &found.kinds["sound"]);
        assert_eq!((motion.count, motion.accuracy), (3, 100.0 / 3.0));
        assert_eq!((motion.majority, sound.majority, sound.accuracy), (200.0 / 3.0, 100.0, 50.0));
        assert_eq!(found.mean_of_kinds, (100.0 / 3.0 + 50.0) / 2.0);
    }

    #[test]
    fn wrong_answers_are_named() {
        let error = |items: &[Item]| evaluate(items).unwrap_err().to_string();
        assert_eq!(error(&[]), "`items` is empty; give at least one");
        let far = error(&[choice("motion", 1, 1), choice("motion", 7, 1)]);
        assert_eq!(far, "`items[1].predicted` is 7, but must be below 4");
        assert_eq!(error(&[choice("m", 1, 4)]), "`items[0].right` is 4, but must be below 4");
        assert_eq!(error(&[open("m", "a", &[])]), "`items[0].right` is empty; give at least one");
        let mut mixed = choice("m", 1, 1);
        mixed.predicted = Answer::Open("one".to_owned());
        let words = "`items[0].predicted` is words, but must be a number, as in `right`";
        assert_eq!(error(&[mixed]), words);
    }
}
