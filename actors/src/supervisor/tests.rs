//! The supervisor with fake nodes and a clock that is set by hand.

use std::fs;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use actix::{Arbiter, System};

use super::*;
use crate::clock::RealClock;
use crate::crew::Crew;
use crate::edge::Directory;
use crate::fake::{self, HandClock, Script};
use crate::hosts::{HostError, Remote};
use crate::observer::{Observer, Verdict};

struct Trial {
    graph: Graph,
    clock: Arc<dyn Clock>,
    script: Script,
    observers: Vec<Box<dyn Observer>>,
    every: u64,
    remote: Option<Box<dyn Remote>>,
}

impl Trial {
    fn new(steps: u64) -> Self {
        let clock = Arc::new(RealClock::start());
        let script: Script = Arc::new(|_, _| {});
        let (graph, observers) = (fake::graph(steps), Vec::new());
        Self { graph, clock, script, observers, every: 500, remote: None }
    }

    /// Runs in a folder; gives the outcome and the numbers.
    fn run(self, folder: &Path) -> (Outcome, String) {
        let _system = System::new();
        let late: Arc<Mutex<Option<Addr<Supervisor>>>> = Arc::default();
        let (for_report, for_stop, for_heard) = (late.clone(), late.clone(), late.clone());
        let address = |late: &Mutex<Option<Addr<Supervisor>>>| late.lock().unwrap().clone();
        let report = move |event: Event| {
            #[expect(clippy::disallowed_methods, reason = "a test")]
            address(&for_report).unwrap().do_send(event);
        };
        let stop = move |reason| {
            #[expect(clippy::disallowed_methods, reason = "a test")]
            address(&for_stop).unwrap().do_send(Interrupt { reason });
        };
        let heard = move || {
            #[expect(clippy::disallowed_methods, reason = "a test")]
            address(&for_heard).unwrap().do_send(Heard);
        };
        let audience =
            Audience { observers: self.observers, stop: Box::new(stop), heard: Box::new(heard) };
        let audience = Audience::start_in_arbiter(&Arbiter::new().handle(), move |_| audience);
        let factory = fake::factory(self.script, Arc::default());
        let crew = Crew::new(factory, Arc::new(report), Directory::default());
        let (outcome, ended) = crossbeam_channel::bounded(1);
        let charge = Charge {
            graph: Arc::new(self.graph),
            hosts: Hosts::new(crew, BTreeMap::new(), self.remote),
            record: Record::open(&folder.join("metrics.csv")).unwrap(),
            checkpointer: Checkpointer::open(&folder.join("checkpoints"), "g", 3).unwrap(),
            policy: Policy { every: self.every, keep: 3 },
            audience,
            only: None,
            outcome,
            clock: self.clock,
        };
        let arbiter = Arbiter::new();
        let supervisor =
            Supervisor::start_in_arbiter(&arbiter.handle(), move |_| Supervisor::new(charge));
        *late.lock().unwrap() = Some(supervisor.clone());
        #[expect(clippy::disallowed_methods, reason = "a test")]
        supervisor.do_send(Start);
        let outcome = ended.recv_timeout(Duration::from_secs(60)).expect("the run ends");
        (outcome, fs::read_to_string(folder.join("metrics.csv")).unwrap())
    }
}

/// Bytes of this process in memory.
fn resident() -> u64 {
    let text = fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

/// Notes what is resident after a step.
struct Gauge {
    step: u64,
    bytes: Arc<AtomicU64>,
}

impl Observer for Gauge {
    fn observe(&mut self, happening: &Happening) -> Verdict {
        if matches!(happening, Happening::Stepped { step, .. } if *step == self.step) {
            self.bytes.store(resident(), Ordering::SeqCst);
        }
        Verdict::GoOn
    }
}

#[test]
fn five_thousand_steps_take_no_more_memory_than_one_thousand() {
    let folder = tempfile::tempdir().unwrap();
    let mut trial = Trial::new(5000);
    let bytes: [Arc<AtomicU64>; 2] = Default::default();
    for (step, bytes) in [(1000, &bytes[0]), (4999, &bytes[1])] {
        trial.observers.push(Box::new(Gauge { step, bytes: bytes.clone() }));
    }
    let (outcome, numbers) = trial.run(folder.path());
    assert_eq!(outcome, Outcome::Done);
    assert_eq!(numbers.lines().filter(|line| line.contains("supervisor,loss")).count(), 5000);
    let [early, late] = bytes.map(|bytes| bytes.load(Ordering::SeqCst));
    assert!(late < early + (20 << 20), "{early} bytes, later {late}");
}

#[test]
fn failures_that_are_far_apart_do_not_add_up() {
    let plain = tempfile::tempdir().unwrap();
    let (_, expected) = Trial::new(20).run(plain.path());
    let folder = tempfile::tempdir().unwrap();
    let clock = Arc::new(HandClock::default());
    let mut trial = Trial::new(20);
    (trial.clock, trial.every) = (clock.clone(), 2);
    trial.graph.experiment.run.max_restarts = 1;
    let failed = Mutex::new(BTreeSet::new());
    trial.script = Arc::new(move |node, at| {
        if node == "model" && at.step % 5 == 4 && failed.lock().unwrap().insert(at.step) {
            clock.0.fetch_add(400, Ordering::SeqCst); // the window is 300 s
            panic!("once at step {}", at.step);
        }
    });
    let (outcome, numbers) = trial.run(folder.path());
    assert_eq!(outcome, Outcome::Done);
    assert_eq!(numbers, expected);
}

#[test]
fn failures_within_the_window_end_the_run_with_the_first_cause() {
    let folder = tempfile::tempdir().unwrap();
    let mut trial = Trial::new(20);
    trial.graph.experiment.run.max_restarts = 1;
    let count = AtomicU64::new(0);
    trial.script = Arc::new(move |node, at| {
        if node == "loss" && at.step == 3 {
            panic!("number {}", count.fetch_add(1, Ordering::SeqCst));
        }
    });
    let (outcome, _) = trial.run(folder.path());
    let Outcome::Failed { cause } = outcome else { panic!("{outcome:?}") };
    assert_eq!(cause, "`loss`: panicked: number 0 (after 1 restart in 300 s)");
}

#[test]
fn a_node_that_hangs_is_named_after_the_deadline() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Arc::new(HandClock::default());
    let mut trial = Trial::new(20);
    trial.clock = clock.clone();
    trial.graph.experiment.run.max_restarts = 0;
    trial.script = Arc::new(move |node, at| {
        if node == "model" && at.step == 3 {
            loop {
                clock.0.fetch_add(601, Ordering::SeqCst);
                std::thread::park_timeout(Duration::from_millis(100));
            }
        }
    });
    let (outcome, _) = trial.run(folder.path());
    let Outcome::Failed { cause } = outcome else { panic!("{outcome:?}") };
    assert!(cause.contains("no progress for 600 s; waiting for"), "{cause}");
    assert!(cause.contains("`model`"), "{cause}");
}

/// Stops the run after a step.
struct Objector {
    step: u64,
    reason: &'static str,
}

impl Observer for Objector {
    fn observe(&mut self, happening: &Happening) -> Verdict {
        match happening {
            Happening::Stepped { step, .. } if *step == self.step => {
                Verdict::Stop(self.reason.to_owned())
            }
            _ => Verdict::GoOn,
        }
    }
}

#[test]
fn an_observer_may_object_to_the_last_step() {
    let folder = tempfile::tempdir().unwrap();
    let mut trial = Trial::new(8);
    trial.observers.push(Box::new(Objector { step: 7, reason: "no" }));
    let (outcome, _) = trial.run(folder.path());
    assert_eq!(outcome, Outcome::Failed { cause: "no".to_owned() });
}

/// Frames of the next step are on their way when a run is interrupted, and the checkpoint before is
/// still being written: the one that ends the run must not contain an update of the next step.
#[test]
fn a_run_interrupted_while_a_checkpoint_is_written_goes_on_with_the_same_numbers() {
    // A loss that trains does not wait to be told that the step before is over.
    let new = || {
        let mut trial = Trial::new(20);
        let nodes = &mut trial.graph.stages[0].nodes;
        let optimizer = nodes["model"].spec.optimizer.clone();
        nodes.get_mut("loss").unwrap().spec.optimizer = optimizer;
        trial
    };
    let plain = tempfile::tempdir().unwrap();
    let (_, expected) = new().run(plain.path());
    let folder = tempfile::tempdir().unwrap();
    let mut trial = new();
    trial.every = 2;
    trial.graph.experiment.run.prefetch = 4;
    trial.script = Arc::new(|node, _| {
        let wait = if node == "model is written" { 400 } else { 10 };
        std::thread::park_timeout(Duration::from_millis(wait));
    });
    trial.observers.push(Box::new(Objector { step: 2, reason: "" })); // as a person does
    let (outcome, numbers) = trial.run(folder.path());
    assert!(matches!(outcome, Outcome::Interrupted { .. }), "{outcome:?}");
    assert!(expected.starts_with(&numbers));
    let (outcome, numbers) = new().run(folder.path());
    assert_eq!(outcome, Outcome::Done);
    assert_eq!(numbers, expected);
}

/// Agents that are never there.
struct Nobody {
    error: fn() -> HostError,
    attempts: Arc<AtomicU64>,
}

impl Remote for Nobody {
    fn gather(&mut self, _: Generation) -> Result<(), HostError> {
        self.attempts.fetch_add(1, Ordering::SeqCst);
        Err((self.error)())
    }

    fn command(&mut self, _: &str, _: Command) {}

    fn lost(&mut self) -> Option<String> {
        None
    }

    fn dismiss(&mut self) {}
}

#[test]
fn an_agent_that_never_came_costs_one_attempt_and_an_interrupt_is_no_failure() {
    let gather = |error: fn() -> HostError| {
        let folder = tempfile::tempdir().unwrap();
        let attempts: Arc<AtomicU64> = Arc::default();
        let mut trial = Trial::new(20);
        trial.remote = Some(Box::new(Nobody { error, attempts: attempts.clone() }));
        (trial.run(folder.path()).0, attempts.load(Ordering::SeqCst))
    };
    let (outcome, attempts) =
        gather(|| HostError::Missing { host: "far".into(), reason: "start it".into() });
    let cause = "[E601] the agent of host `far` is missing: start it".to_owned();
    assert_eq!((outcome, attempts), (Outcome::Failed { cause }, 1));
    let (outcome, attempts) = gather(|| HostError::Interrupted);
    assert_eq!((outcome, attempts), (Outcome::Interrupted { step: 0 }, 1));
    // One that did not come up may do so the next time.
    let (outcome, attempts) =
        gather(|| HostError::Absent { host: "far".into(), reason: "late".into() });
    assert!(matches!(outcome, Outcome::Failed { .. }), "{outcome:?}");
    assert_eq!(attempts, 4);
}
