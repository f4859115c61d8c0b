//! Answers that neither the words of a question nor one of two senses gives away.

use std::collections::BTreeMap;

use super::super::record;
use super::*;
use crate::rng::Key;

/// Questions of a set whose clips are too small to see.
fn asked(options: &Options, folder: &str, count: usize) -> Vec<Vec<Question>> {
    let options = Options { size: 16, frames: 2, masks: false, ..options.clone() };
    (0..count).map(|number| record::make(&options, folder, number).0.questions).collect()
}

#[test]
fn choices_hold_the_answer_once_and_at_every_place() {
    let options = Options { untrimmed: 100, ..Options::default() };
    let all = [asked(&options, "train", 960), asked(&options, "untrimmed", 100)].concat();
    let mut places: BTreeMap<(&str, usize), Vec<usize>> = BTreeMap::new();
    for question in all.iter().flatten() {
        let Question { about, answer, choices, .. } = question;
        assert!((2..=CHOICES).contains(&choices.len()), "{question:?}");
        let found: Vec<usize> = (0..choices.len()).filter(|at| choices[*at] == *answer).collect();
        assert_eq!(found.len(), 1, "{question:?}");
        assert!(choices.iter().enumerate().all(|(at, text)| !choices[..at].contains(text)));
        places.entry((about, choices.len())).or_insert(vec![0; choices.len()])[found[0]] += 1;
    }
    for (kind, counts) in places {
        let (all, size) = (counts.iter().sum::<usize>() as f64, counts.len() as f64);
        let bound = 4.0 * (all / size).sqrt();
        let even = |count: &usize| (*count as f64 - all / size).abs() < bound;
        assert!(counts.iter().all(even), "{kind:?}: {counts:?}");
    }
}

/// How often the best guess from something is right, over questions about something.
fn guess<T: Ord>(
    all: &[Vec<Question>],
    about: &str,
    seen: impl Fn(usize, &Question) -> T,
) -> (f64, usize) {
    let mut table: BTreeMap<T, BTreeMap<&str, usize>> = BTreeMap::new();
    let mut count = 0;
    for (number, list) in all.iter().enumerate() {
        for question in list.iter().filter(|question| question.about == about) {
            *table
                .entry(seen(number, question))
                .or_default()
                .entry(&question.answer)
                .or_default() += 1;
            count += 1;
        }
    }
    let right: usize =
        table.values().map(|answers| answers.values().max().copied().unwrap_or_default()).sum();
    (right as f64 / count as f64, count)
}

#[test]
fn the_words_of_a_question_do_not_tell_its_answer() {
    let options = Options { motions: 14, appearances: 24, ..Options::default() };
    let all = asked(&options, "train", 336 * 8);
    for (about, chance) in [
        ("motion", 1.0 / 14.0),
        ("motion_yes_no", 0.5),
        ("appearance_yes_no", 0.5),
        ("count", 0.25),
        ("sound", 1.0 / 3.0),
        ("sound_and_motion", 0.5),
        ("state_change", 0.5),
        ("order", 0.5),
        ("before_after", 0.5),
    ] {
        let (share, count) = guess(&all, about, |_, question| question.question.clone());
        let texts = all.iter().flatten().filter(|question| question.about == about);
        let texts: std::collections::BTreeSet<&str> =
            texts.map(|question| question.question.as_str()).collect();
        // The best guess of a table gains about one deviation in each of its rows.
        let slack = 3.0 * (chance * texts.len() as f64 / count as f64).sqrt() + 0.02;
        assert!(share < chance + slack, "{about}: {share} of {count}, chance {chance}");
    }
}

#[test]
fn a_question_about_sound_and_motion_needs_both() {
    let options = Options { motions: 4, appearances: 4, ..Options::default() };
    let all = asked(&options, "train", 6000);
    let small = Options { size: 16, frames: 2, masks: false, ..options.clone() };
    let facts: Vec<(usize, usize)> = (0..6000)
        .map(|number| {
            let record = record::make(&small, "train", number).0;
            (record.heard.unwrap().beats, record.motion.unwrap())
        })
        .collect();
    let about = "sound_and_motion";
    let text = |question: &Question| question.question.clone();
    let share = |(share, _): (f64, usize)| share;
    let heard = share(guess(&all, about, |number, question| (text(question), facts[number].0)));
    let seen = share(guess(&all, about, |number, question| (text(question), facts[number].1)));
    let both = share(guess(&all, about, |number, question| (text(question), facts[number])));
    assert!((0.7..0.8).contains(&heard) && (0.7..0.8).contains(&seen), "{heard} {seen}");
    assert!((both - 1.0).abs() < 1e-9, "{both}");
}

#[test]
fn a_world_asks_only_what_it_has_several_answers_to() {
    let one = Options { motions: 2, appearances: 1, clutter: false, ..Options::default() };
    let said: Vec<Question> = asked(&one, "train", 40).concat();
    let asks = |about: &str| said.iter().any(|question| question.about == about);
    assert!(!asks("appearance") && !asks("appearance_yes_no") && !asks("count"));
    assert!(asks("motion") && asks("motion_yes_no") && asks("sound"));
    let said: Vec<Question> = asked(&one, "untrimmed", 8).concat();
    assert!(said.iter().all(|question| !["count", "before_after"].contains(&question.about)));
    let few = Options { motions: 4, appearances: 6, ..Options::default() };
    for question in asked(&few, "train", 48).concat() {
        let strange = ["grows", "bell", "green", "very high pitch"];
        let strange = |text: &String| strange.contains(&text.as_str());
        assert!(!question.choices.iter().any(strange), "{question:?}");
    }
}

#[test]
fn two_numbers_differ_and_are_even() {
    let mut rng = Key::new(1, "two").rng();
    let mut seen = BTreeMap::new();
    for _ in 0..1200 {
        *seen.entry(two(4, &mut rng)).or_insert(0) += 1;
    }
    assert!(seen.len() == 12 && seen.values().all(|count| (60..140).contains(count)), "{seen:?}");
}
