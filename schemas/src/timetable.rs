//! Which steps of a stage something takes part in.
//!
//! A stage may draw one medium a step (`mixture: { video: 3, image: 1 }`), and a loss may count for some media
//! and for a part of the stage only. A node works in the steps of the losses that need it. Every process reckons
//! this by itself from the seed, so that nobody has to be told.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The most draws of a mixture before it begins again.
pub const MAX_CYCLE: u32 = 1024;

/// What a stage draws from, one medium a step.
///
/// The media come in rounds: each as often as its number says, in an order drawn for each round. So shares are
/// exact, as with loaders that are shuffled once an epoch (InternVideo2; recipes §2.8).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mixture {
    /// Seed of the experiment.
    pub seed: u64,
    /// Name of the stage.
    pub stage: String,
    /// Media and how often each comes in a round.
    pub parts: Vec<(String, u32)>,
}

impl Mixture {
    /// Steps of a round.
    pub fn cycle(&self) -> u64 {
        self.parts.iter().map(|(_, count)| u64::from(*count)).sum::<u64>().max(1)
    }

    /// The medium of a step, counted from the first one of the stage.
    pub fn medium(&self, step: u64) -> &str {
        let (round, place) = (step / self.cycle(), (step % self.cycle()) as usize);
        let mut all: Vec<([u8; 32], &str)> = Vec::new();
        for (medium, count) in &self.parts {
            for number in 0..*count {
                let mut hash = Sha256::new();
                hash.update(self.seed.to_le_bytes());
                hash.update((self.stage.len() as u64).to_le_bytes());
                hash.update(self.stage.as_bytes());
                hash.update(round.to_le_bytes());
                hash.update(number.to_le_bytes());
                hash.update(medium.as_bytes());
                all.push((hash.finalize().into(), medium));
            }
        }
        all.sort_unstable();
        all.get(place).map_or("", |(_, medium)| medium)
    }
}

/// Some steps of a stage: those of some media, within a part of it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Span {
    /// Media; all when absent.
    pub media: Option<BTreeSet<String>>,
    /// First step, counted from the first one of the stage.
    pub first: u64,
    /// The step after the last one.
    pub end: u64,
}

impl Span {
    /// All steps.
    pub const ALL: Self = Self { media: None, first: 0, end: u64::MAX };
}

/// The steps of any of some spans; never without one.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct When(pub BTreeSet<Span>);

impl When {
    /// In every step.
    pub fn always() -> Self {
        Self(BTreeSet::from([Span::ALL]))
    }

    /// Whether there is no such step.
    pub fn is_never(&self) -> bool {
        self.0.is_empty()
    }

    fn is_always(&self) -> bool {
        self.0.contains(&Span::ALL)
    }

    /// Adds the steps of another.
    pub fn join(&mut self, other: &Self) {
        self.0.extend(other.0.iter().cloned());
    }
}

/// Where a stage begins, and what it draws in each step.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Timetable {
    /// Its first step in the run.
    pub first_step: u64,
    /// What it draws from; nothing when all steps are alike.
    pub mixture: Option<Mixture>,
}

impl Timetable {
    /// The medium of a step of the run.
    pub fn medium(&self, step: u64) -> Option<&str> {
        let mixture = self.mixture.as_ref()?;
        Some(mixture.medium(step.saturating_sub(self.first_step)))
    }

    /// Whether a step of the run is one of these.
    pub fn holds(&self, when: &When, step: u64) -> bool {
        if when.is_always() || when.is_never() {
            return when.is_always();
        }
        let place = step.saturating_sub(self.first_step);
        let mut within = when.0.iter().filter(|s| s.first <= place && place < s.end).peekable();
        if within.peek().is_none() {
            return false;
        }
        let medium = self.medium(step);
        within.any(|span| match (&span.media, medium) {
            (None, _) => true,
            (Some(media), Some(medium)) => media.contains(medium),
            (Some(_), None) => false,
        })
    }

    /// How many of these steps there are in the stage before a step of the run.
    pub fn turns(&self, when: &When, step: u64) -> u64 {
        if when.is_always() {
            return step.saturating_sub(self.first_step);
        }
        let count = |from: u64| (from..step).filter(|step| self.holds(when, *step)).count() as u64;
        let whole = when.0.iter().all(|span| span.first == 0 && span.end == u64::MAX);
        let Some(mixture) = self.mixture.as_ref().filter(|_| whole) else {
            return count(self.first_step);
        };
        // Every round has each medium as often as it says.
        let wanted = |medium: &String| {
            when.0.iter().any(|span| span.media.as_ref().is_none_or(|media| media.contains(medium)))
        };
        let parts = mixture.parts.iter().filter(|(medium, _)| wanted(medium));
        let round: u64 = parts.map(|(_, count)| u64::from(*count)).sum();
        let rounds = step.saturating_sub(self.first_step) / mixture.cycle();
        rounds * round + count(self.first_step + rounds * mixture.cycle())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Timetable {
        let parts = vec![("image".to_owned(), 1), ("video".to_owned(), 3)];
        let mixture = Mixture { seed: 7, stage: "align".to_owned(), parts };
        Timetable { first_step: 10, mixture: Some(mixture) }
    }

    fn on(medium: &str) -> When {
        let media = Some(BTreeSet::from([medium.to_owned()]));
        When(BTreeSet::from([Span { media, ..Span::ALL }]))
    }

    #[test]
    fn every_round_has_each_medium_as_often_as_it_says_in_an_order_of_its_own() {
        let table = table();
        let media: Vec<&str> = (10..410).map(|step| table.medium(step).unwrap()).collect();
        assert!(media.chunks(4).all(|round| round.iter().filter(|m| **m == "image").count() == 1));
        let places: BTreeSet<_> =
            media.chunks(4).map(|round| round.iter().position(|m| *m == "image")).collect();
        assert_eq!(places.len(), 4);
        let mixture = Mixture { seed: 8, ..table.mixture.clone().unwrap() };
        let other = Timetable { mixture: Some(mixture), ..table.clone() };
        assert!((10..410).any(|step| other.medium(step) != table.medium(step)));
    }

    #[test]
    fn turns_count_the_steps_before() {
        let table = table();
        for (when, all) in [(on("video"), 300), (on("image"), 100), (on("sound"), 0)] {
            assert_eq!(table.turns(&when, 410), all);
            let mut turn = 0;
            for step in 10..60 {
                assert_eq!(table.turns(&when, step), turn);
                turn += u64::from(table.holds(&when, step));
            }
        }
        assert_eq!(table.turns(&When::always(), 35), 25);
        assert!(!table.holds(&When::default(), 10));
    }

    #[test]
    fn a_span_has_a_first_and_a_last_step() {
        let mut when = When(BTreeSet::from([Span { first: 2, end: 5, ..Span::ALL }]));
        let held = |when: &When| (10..20).filter(|step| table().holds(when, *step)).count();
        assert_eq!(held(&when), 3);
        when.join(&When(BTreeSet::from([Span { first: 4, end: 7, ..Span::ALL }])));
        assert_eq!(held(&when), 5);
    }
}
