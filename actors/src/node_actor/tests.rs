//! One node actor with a fake node; parcels to others are kept.

use std::sync::Mutex;
use std::time::Duration;

use actix::{Addr, Arbiter, System};
use crossbeam_channel::Receiver;

use schemas::graph::WEIGHTS;
use schemas::timetable::{Timetable, When};

use super::*;
use crate::checkpointer::start_writer;
use crate::edge::{Edge, EdgeError};
use crate::fake::{self, Log};
use crate::message::Consumer;

/// Keeps parcels, or refuses them.
struct Kept {
    parcels: Mutex<Vec<Parcel>>,
    refusal: Option<EdgeError>,
}

impl Edge for Kept {
    fn send(&self, parcel: Parcel) -> Result<(), EdgeError> {
        self.parcels.lock().unwrap().push(parcel);
        self.refusal.clone().map_or(Ok(()), Err)
    }
}

struct Bench {
    address: Addr<NodeActor>,
    events: Receiver<Event>,
    kept: Arc<Kept>,
    log: Log,
    _system: actix::SystemRunner,
}

impl Bench {
    /// An actor for `model`, whose neighbours are all kept.
    fn new(refusal: Option<EdgeError>) -> Self {
        let system = System::new();
        let (sender, events) = crossbeam_channel::unbounded();
        let kept = Arc::new(Kept { parcels: Mutex::default(), refusal });
        let directory = Directory::default();
        for node in ["one", "two", "follower"] {
            directory.set(node, kept.clone());
        }
        let log = Log::default();
        let report = move |event| sender.send(event).expect("the test listens");
        let workplace = Workplace {
            factory: fake::factory(Arc::new(|_, _| {}), log.clone()),
            directory,
            report: Arc::new(report),
            writer: start_writer(),
        };
        let arbiter = Arbiter::new();
        let address = NodeActor::start_in_arbiter(&arbiter.handle(), move |_| {
            NodeActor::new("model", workplace)
        });
        Self { address, events, kept, log, _system: system }
    }

    fn order(&self, order: Order) {
        let command = Command { generation: 1, node: "model".into(), order };
        self.address.try_send(command).expect("room");
    }

    fn deliver(&self, (step, microbatch): (u64, u32), pass: Pass, ends: (End, End), value: f32) {
        let at = At { stage: 0, step, microbatch };
        let load = Load::Frame { at, pass, frame: Frame::f32([1], [value]) };
        let parcel = Parcel { generation: 1, from: ends.0, to: ends.1, load };
        self.address.try_send(parcel).expect("room");
    }

    fn input(&self, at: (u64, u32), value: f32) {
        self.deliver(at, Pass::Forward, (End::new("clips", "x"), End::new("model", "x")), value);
    }

    fn gradient(&self, at: (u64, u32), from: &str, value: f32) {
        self.deliver(at, Pass::Backward, (End::new(from, "y"), End::new("model", "y")), value);
    }

    fn until(&self, wanted: impl Fn(&What) -> bool) -> What {
        loop {
            let event = self.events.recv_timeout(Duration::from_secs(20)).expect("an event");
            if wanted(&event.what) {
                return event.what;
            }
        }
    }

    fn log(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }
}

/// A node that trains and feeds two others.
fn role(accumulate: u32) -> Assignment {
    let consumer = |node: &str| Consumer {
        to: End::new(node, "y"),
        works: When::always(),
        backs: When::always(),
    };
    let outputs = BTreeMap::from([("y".to_owned(), vec![consumer("one"), consumer("two")])]);
    Assignment {
        spec: fake::spec("model", &["x"], &["y"], true),
        stage: 0,
        step: 0,
        accumulate,
        outputs,
        gradients: BTreeMap::new(),
        losses: BTreeMap::new(),
        steps: 1000,
        timetable: Timetable::default(),
        works: When::always(),
        backs: When::always(),
        same: None,
        vertices: BTreeMap::new(),
        follows: None,
        followers: Vec::new(),
        copies: false,
        copied_by: Vec::new(),
        source: false,
        synchronous: true,
        fresh: false,
    }
}

#[test]
fn microbatches_and_gradients_have_one_order_whatever_the_order_of_arrival() {
    let expected =
        ["forward 0 0", "forward 0 1", "backward 0 0 y=0.5 y=0.25", "backward 0 1 y=1 y=2"];
    let bench = Bench::new(None);
    bench.order(Order::Assume(Box::new(role(2))));
    bench.input((0, 1), 1.0);
    bench.input((1, 0), 1.0); // a step ahead: it waits for the update
    bench.input((0, 0), 1.0);
    bench.gradient((0, 1), "two", 2.0);
    bench.gradient((0, 0), "two", 0.25);
    bench.gradient((0, 1), "one", 1.0);
    bench.gradient((0, 0), "one", 0.5);
    bench.until(|what| matches!(what, What::BackwardDone { step: 0, .. }));
    assert_eq!(bench.log(), expected);
    bench.order(Order::Apply(Update { step: 0, lr: 0.1, scale: 1.0 }));
    bench.until(|what| matches!(what, What::Measured { at: At { step: 1, .. }, .. }));
    // What was measured is told before the last parcels are on their way.
    let sent = || bench.kept.parcels.lock().unwrap().len();
    for _ in 0..10_000_000 {
        if sent() == 6 {
            break;
        }
        std::thread::yield_now();
    }
    assert_eq!(sent(), 6);
}

#[test]
fn a_full_mailbox_is_final_and_a_lost_neighbour_is_not() {
    let full = EdgeError::Full { node: "one".to_owned() };
    let gone = EdgeError::Gone { node: "one".to_owned() };
    for (refusal, code, last) in [(full, "[E402]", true), (gone, "[E403]", false)] {
        let bench = Bench::new(Some(refusal));
        bench.order(Order::Assume(Box::new(role(1))));
        bench.input((0, 0), 1.0);
        let failed = bench.until(|what| matches!(what, What::Failed { .. }));
        let What::Failed { error, final_ } = failed else { panic!() };
        assert!(error.starts_with(&format!("edge from `model.y`: {code}")), "{error}");
        assert_eq!(final_, last);
    }
}

#[test]
fn a_follower_takes_weights_only_after_its_own_work_of_that_step() {
    let bench = Bench::new(None);
    let mut role = role(2);
    role.follows = Some("other".to_owned());
    (role.spec.optimizer, role.spec.backward) = (None, false);
    bench.order(Order::Assume(Box::new(role)));
    bench.until(|what| matches!(what, What::Ready));
    let frames = Frames::from([("w".to_owned(), Frame::f32([1], [7.0]))]);
    let load = Load::Weights { step: 1, frames };
    let (from, to) = (End::new("other", WEIGHTS), End::new("model", WEIGHTS));
    bench.address.try_send(Parcel { generation: 1, from, to, load }).expect("room");
    bench.input((0, 0), 1.0);
    bench.input((0, 1), 1.0);
    bench.input((1, 0), 1.0);
    bench.order(Order::Follow(0));
    bench.until(|what| matches!(what, What::Followed { step: 0 }));
    bench.until(|what| matches!(what, What::Measured { at: At { step: 1, .. }, .. }));
    let parcels = bench.kept.parcels.lock().unwrap();
    let value = |parcel: &Parcel| match &parcel.load {
        Load::Frame { frame, .. } => frame.to_f32()[0],
        Load::Weights { .. } | Load::Gradients { .. } => f32::NAN,
    };
    let values: Vec<f32> = parcels.iter().map(value).collect();
    assert_eq!(values[..4], [1.0; 4]);
    assert!(values[4..].iter().all(|value| *value == 7.0), "{values:?}");
}

#[test]
fn what_begins_as_a_copy_waits_for_it() {
    let bench = Bench::new(None);
    let mut role = role(1);
    (role.copies, role.spec.optimizer, role.spec.backward) = (true, None, false);
    bench.order(Order::Assume(Box::new(role)));
    bench.until(|what| matches!(what, What::Ready));
    bench.input((0, 0), 1.0);
    let frames = Frames::from([("w".to_owned(), Frame::f32([1], [7.0]))]);
    let (from, to) = (End::new("other", WEIGHTS), End::new("model", WEIGHTS));
    let load = Load::Weights { step: 0, frames };
    bench.address.try_send(Parcel { generation: 1, from, to, load }).expect("room");
    bench.until(|what| matches!(what, What::Measured { .. }));
    let parcels = bench.kept.parcels.lock().unwrap();
    let Some(Parcel { load: Load::Frame { frame, .. }, .. }) = parcels.first() else { panic!() };
    assert_eq!(frame.to_f32(), [7.0]);
}

#[test]
fn what_is_left_of_an_old_generation_is_ignored() {
    let bench = Bench::new(None);
    bench.order(Order::Assume(Box::new(role(1))));
    bench.until(|what| matches!(what, What::Ready));
    let at = At { stage: 0, step: 0, microbatch: 0 };
    let load = Load::Frame { at, pass: Pass::Forward, frame: Frame::f32([1], [9.0]) };
    let (from, to) = (End::new("clips", "x"), End::new("model", "x"));
    bench.address.try_send(Parcel { generation: 0, from, to, load }).expect("room");
    bench.input((0, 0), 2.0);
    bench.until(|what| matches!(what, What::Measured { .. }));
    let parcels = bench.kept.parcels.lock().unwrap();
    let Some(Parcel { load: Load::Frame { frame, .. }, .. }) = parcels.first() else { panic!() };
    assert_eq!(frame.to_f32(), [2.0]);
}
