//! Observers: who watches a run and may ask to stop it.
//!
//! They see what happened after each step, on a thread of their own; a slow disk or terminal
//! does not slow the work.

use std::path::Path;

use actix::{Actor, Context, Handler, Message};
use schemas::entry::{OptionProblem, read_options};
use schemas::node::Notice;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::record::Row;

/// What observers see.
#[derive(Debug, Clone, Message)]
#[rtype(result = "()")]
pub enum Happening {
    /// A stage begins.
    StageBegan {
        /// Name.
        stage: String,
        /// Its first step, or where it goes on.
        step: u64,
        /// Its last step plus one.
        end: u64,
        /// Steps of the whole run.
        total: u64,
    },
    /// A step is over; its numbers.
    Stepped {
        /// Name of the stage.
        stage: String,
        /// The step.
        step: u64,
        /// All numbers of the step.
        rows: Vec<Row>,
    },
    /// Something that people should know.
    Noticed {
        /// Node.
        node: String,
        /// What.
        notice: Notice,
    },
    /// A checkpoint was committed.
    Saved {
        /// The next step.
        step: u64,
    },
    /// A failure was repaired: the run goes on from an earlier step.
    Rewound {
        /// The next step.
        step: u64,
        /// The first cause.
        cause: String,
    },
    /// The run is over.
    Ended,
}

/// What an observer thinks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Go on.
    GoOn,
    /// Stop the run, with a reason.
    Stop(String),
}

/// Watches a run.
pub trait Observer: Send {
    /// Sees one happening.
    fn observe(&mut self, happening: &Happening) -> Verdict;
}

/// Makes an observer from its options and the folder of the run.
pub type Make = fn(&Value, &Path) -> Result<Box<dyn Observer>, String>;

/// A kind of observer.
#[derive(Clone, Copy)]
pub struct Entry {
    /// Makes one.
    pub make: Make,
    /// Reads its options and makes nothing.
    pub check: fn(&Value) -> Result<(), OptionProblem>,
}

/// The entry of an observer whose options are its state.
pub const fn entry<O: Observer + DeserializeOwned + Open + 'static>() -> Entry {
    Entry { make: make::<O>, check: |options| read_options::<O>(options).map(|_| ()) }
}

/// Prepares an observer for a run.
pub trait Open {
    /// Opens files in the folder of the run.
    fn open(&mut self, _run: &Path) -> Result<(), String> {
        Ok(())
    }
}

fn make<O: Observer + DeserializeOwned + Open + 'static>(
    options: &Value,
    run: &Path,
) -> Result<Box<dyn Observer>, String> {
    let mut observer: O = serde_json::from_value(options.clone()).map_err(|e| e.to_string())?;
    observer.open(run)?;
    Ok(Box::new(observer))
}

/// The actor around all observers of a run.
pub struct Audience {
    /// The observers.
    pub observers: Vec<Box<dyn Observer>>,
    /// Where a wish to stop goes.
    pub stop: Box<dyn Fn(String) + Send>,
    /// Says that all observers have heard of the end.
    pub heard: Box<dyn Fn() + Send>,
}

impl Actor for Audience {
    type Context = Context<Self>;
}

impl Handler<Happening> for Audience {
    type Result = ();

    fn handle(&mut self, happening: Happening, _: &mut Context<Self>) {
        for observer in &mut self.observers {
            if let Verdict::Stop(reason) = observer.observe(&happening) {
                (self.stop)(reason);
            }
        }
        if matches!(happening, Happening::Ended) {
            (self.heard)();
        }
    }
}
