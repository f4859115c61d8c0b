//! Round trips between transports of one process.

use std::time::Duration;

use crossbeam_channel::Receiver;
use proptest::prelude::*;

use super::*;

pub(super) const TOKEN: [u8; 16] = [7; 16];
/// Far above what any step takes, so that a busy machine fails no test.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

pub(super) fn name(text: &str) -> PeerName {
    PeerName::new(text).unwrap()
}

pub(super) fn ipc(directory: &tempfile::TempDir) -> Address {
    Address::Ipc { path: directory.path().join("ipc/s") }
}

pub(super) fn loopback() -> Address {
    Address::Tcp { host: "127.0.0.1".into(), port: 0 }
}

pub(super) struct Side {
    pub(super) transport: Transport,
    pub(super) inbound: Receiver<Inbound>,
}

impl Side {
    pub(super) fn start(options: Options) -> Self {
        let (transport, inbound) = Transport::start(options).unwrap();
        Self { transport, inbound }
    }

    pub(super) fn connected(&self) -> PeerName {
        match self.inbound.recv_timeout(PATIENCE).unwrap() {
            Inbound::Connected { peer, .. } => peer,
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn message(&self) -> Message {
        match self.inbound.recv_timeout(PATIENCE).unwrap() {
            Inbound::Message { message, .. } => message,
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn lost(&self) -> Cause {
        match self.inbound.recv_timeout(PATIENCE).unwrap() {
            Inbound::Lost { why, .. } => why,
            other => panic!("{other:?}"),
        }
    }
}

/// Options with a heartbeat that a busy machine does not break.
pub(super) fn options(me: &str) -> Options {
    let mut options = Options::new(name(me), TOKEN);
    options.heartbeat.timeout = Duration::from_secs(4);
    options
}

/// Two connected transports: the first listens.
pub(super) fn ipc_pair(change: impl Fn(&mut Options)) -> (Side, Side, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let (mut here, mut there) = (options("here"), options("there"));
    here.bind = vec![ipc(&directory)];
    change(&mut here);
    change(&mut there);
    let (here, there) = (Side::start(here), Side::start(there));
    there.transport.connect(&name("here"), &here.transport.addresses()[0], None).unwrap();
    assert_eq!(here.connected(), name("there"));
    assert_eq!(there.connected(), name("here"));
    (here, there, directory)
}

pub(super) fn tcp_pair() -> (Side, Side) {
    let (mut here, mut there) = (options("here"), options("there"));
    let (first, second) = (Keys::generate().unwrap(), Keys::generate().unwrap());
    let server = first.public();
    here.bind = vec![loopback()];
    here.allow = vec![(second.public(), name("there"))];
    here.keys = Some(first);
    there.keys = Some(second);
    let (here, there) = (Side::start(here), Side::start(there));
    there.transport.connect(&name("here"), &here.transport.addresses()[0], Some(server)).unwrap();
    assert_eq!(here.connected(), name("there"));
    assert_eq!(there.connected(), name("here"));
    (here, there)
}

fn body(len: usize, seed: usize) -> Bytes {
    (0..len).map(|index| (index * 31 + index / 251 + seed) as u8).collect::<Vec<_>>().into()
}

pub(super) fn message(sizes: &[usize]) -> Message {
    let bodies = sizes.iter().enumerate().map(|(seed, len)| body(*len, seed)).collect();
    Message { header: format!("{sizes:?}").into_bytes(), bodies }
}

pub(super) fn wait_for_memory(side: &Side, peer: &PeerName) {
    let start = clock::now();
    while !side.transport.shares_memory(peer) {
        assert!(start.elapsed() < PATIENCE, "no shared memory");
        std::thread::yield_now();
    }
}

pub(super) fn there_and_back(here: &Side, there: &Side, message: &Message) {
    there.transport.send(&name("here"), message.clone()).unwrap();
    let got = here.message();
    assert!(got == *message, "changed on the way");
    let aligned = |body: &Bytes| body.is_empty() || body.as_ptr().align_offset(64) == 0;
    assert!(got.bodies.iter().all(aligned));
    here.transport.send(&there.transport.inner.options.me, got).unwrap();
    assert!(there.message() == *message, "changed on the way back");
}

pub(super) const SIZES: [&[usize]; 7] = [
    &[],
    &[0],
    &[1, 0, 3],
    &[(16 << 10) - 1, 16 << 10, (16 << 10) + 1],
    &[(1 << 20) - 1, 1 << 20, (1 << 20) + 1],
    &[5 << 20, 7],
    &[2_000_003, 0, 64, 3 << 20],
];

#[test]
fn messages_cross_ipc_in_both_directions() {
    let (here, there, _directory) = ipc_pair(|_| {});
    for sizes in SIZES {
        there_and_back(&here, &there, &message(sizes));
    }
}

#[test]
fn messages_cross_encrypted_tcp_in_both_directions() {
    let (here, there) = tcp_pair();
    for sizes in SIZES {
        there_and_back(&here, &there, &message(sizes));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, ..ProptestConfig::default() })]
    #[test]
    fn any_sizes_cross_both_transports(
        all in proptest::collection::vec(proptest::collection::vec(prop_oneof![0usize..70, 16_000usize..17_000, 0usize..3_000_000], 0..4), 1..4),
    ) {
        let ((here, there, _directory), tcp) = (ipc_pair(|_| {}), tcp_pair());
        for sizes in &all {
            there_and_back(&here, &there, &message(sizes));
            there_and_back(&tcp.0, &tcp.1, &message(sizes));
        }
    }
}

#[test]
fn the_order_holds_whatever_way_each_message_travels() {
    let (here, there, _directory) = ipc_pair(|options| options.limits.shared = 4 << 20);
    wait_for_memory(&there, &name("here"));
    let sizes = [0, 100, 1 << 20, 20_000, 3 << 20, 1 << 20];
    let count = 60;
    for turn in 0..count {
        let sent = Message { header: vec![turn as u8], bodies: vec![body(sizes[turn % 6], turn)] };
        there.transport.send(&name("here"), sent).unwrap();
    }
    // Held, so that the memory is full and bodies go as chunks between others that are shared.
    let got: Vec<_> = (0..count).map(|_| here.message()).collect();
    for (turn, message) in got.iter().enumerate() {
        assert_eq!(message.header, [turn as u8]);
        assert!(message.bodies[0] == body(sizes[turn % 6], turn), "body {turn}");
    }
    drop(got);
    there_and_back(&here, &there, &message(&[3 << 20]));
}

#[test]
fn threads_that_send_at_once_keep_their_own_order() {
    let (here, there, _directory) = ipc_pair(|_| {});
    let (threads, count) = (4, 200);
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let transport = &there.transport;
            scope.spawn(move || {
                for turn in 0..count {
                    let bodies = vec![body(turn % 3 * 20_000, turn)];
                    let header = vec![thread as u8, turn as u8];
                    transport.send(&name("here"), Message { header, bodies }).unwrap();
                }
            });
        }
        let mut next = vec![0; threads];
        for _ in 0..threads * count {
            let message = here.message();
            let (thread, turn) = (message.header[0] as usize, usize::from(message.header[1]));
            assert_eq!(turn, next[thread]);
            assert!(message.bodies[0] == body(turn % 3 * 20_000, turn));
            next[thread] += 1;
        }
    });
}

#[test]
fn a_body_written_in_place_is_sent_and_its_memory_used_again() {
    let (here, there, _directory) = ipc_pair(|_| {});
    wait_for_memory(&there, &name("here"));
    let mut addresses = std::collections::BTreeSet::new();
    for turn in 0..20 {
        let mut reserved = there.transport.reserve(&name("here"), 1 << 20).unwrap();
        addresses.insert(reserved.as_ptr() as usize);
        reserved.fill(turn);
        let sent = Message { header: Vec::new(), bodies: vec![reserved.freeze()] };
        there.transport.send(&name("here"), sent).unwrap();
        assert!(here.message().bodies[0].iter().all(|byte| *byte == turn));
    }
    assert!(addresses.len() < 3, "{} places for one body at a time", addresses.len());
}

#[test]
fn messages_sent_before_the_peer_listens_arrive_first() {
    let directory = tempfile::tempdir().unwrap();
    let there = Side::start(options("there"));
    there.transport.connect(&name("here"), &ipc(&directory), None).unwrap();
    for turn in 0..3 {
        there
            .transport
            .send(&name("here"), Message { header: vec![turn], bodies: vec![body(1 << 20, 0)] })
            .unwrap();
    }
    let mut late = options("here");
    late.bind = vec![ipc(&directory)];
    let here = Side::start(late);
    assert_eq!(here.connected(), name("there"));
    for turn in 0..3 {
        assert_eq!(here.message().header, [turn]);
    }
}

#[test]
fn what_cannot_be_sent_is_an_error_that_names_the_peer() {
    let directory = tempfile::tempdir().unwrap();
    let mut small = options("there");
    small.limits = Limits {
        header: 10,
        bodies: 2,
        body: 1000,
        message: 1500,
        queued: 3000,
        ..Limits::default()
    };
    let there = Side::start(small);
    let send =
        |message| there.transport.send(&name("here"), message).map_err(|error| error.to_string());
    assert!(send(message(&[])).unwrap_err().contains("`here` is unknown"));
    there.transport.connect(&name("here"), &ipc(&directory), None).unwrap();
    let cases: [(usize, &[usize], &str); 4] = [
        (11, &[], "header"),
        (1, &[1, 1, 1], "bodies"),
        (1, &[1001], "body"),
        (1, &[800, 800], "message"),
    ];
    for (header, sizes, part) in cases {
        let error = send(Message { header: vec![0; header], ..message(sizes) }).unwrap_err();
        assert!(error.starts_with(part) && error.contains("`here`"), "{error}");
    }
    let large = Message { header: Vec::new(), bodies: vec![body(1000, 0)] };
    let refused = (0..9).find_map(|_| send(large.clone()).err()).expect("nobody takes them");
    assert!(refused.contains("are queued") && refused.contains("`here`"), "{refused}");
}

#[test]
fn a_tcp_address_without_keys_is_an_error_with_the_remedy() {
    let mut bare = options("here");
    bare.bind = vec![loopback()];
    let error = Transport::start(bare).err().unwrap().to_string();
    assert!(error.contains("make them with `playhouse keys`"), "{error}");
    let there = Side::start(options("there"));
    assert!(there.transport.connect(&name("here"), &loopback(), None).is_err());
}

#[test]
fn a_newer_session_of_the_same_peer_replaces_the_older() {
    let (here, there, _directory) = ipc_pair(|_| {});
    let twin = Side::start(options("there"));
    twin.transport.connect(&name("here"), &here.transport.addresses()[0], None).unwrap();
    assert_eq!(here.lost(), Cause::Replaced);
    assert_eq!(here.connected(), name("there"));
    twin.connected();
    drop(there);
    there_and_back(&here, &twin, &message(&[1 << 20]));
}

#[test]
fn a_peer_that_shuts_down_or_is_forgotten_is_lost_for_that_reason() {
    let (here, there, _directory) = ipc_pair(|_| {});
    there.transport.send(&name("here"), message(&[2 << 20])).unwrap();
    there.transport.shutdown();
    assert!(here.message() == message(&[2 << 20]), "sent before the end");
    assert_eq!(here.lost(), Cause::Closed);
    let error = here.transport.send(&name("there"), message(&[])).unwrap_err().to_string();
    assert!(error.contains("`there` is lost: it shut down"), "{error}");
    let (here, there, _directory) = ipc_pair(|_| {});
    here.transport.forget(&name("there")).unwrap();
    assert_eq!((here.lost(), there.lost()), (Cause::Forgotten, Cause::Closed));
}

#[test]
fn a_peer_that_is_connected_again_can_be_sent_to_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let mut first = options("here");
    first.bind = vec![ipc(&directory)];
    let here = Side::start(first);
    for turn in 0..300 {
        let there = Side::start(options("there"));
        let peer = name("there");
        there.transport.connect(&name("here"), &here.transport.addresses()[0], None).unwrap();
        // Looked for without sleeping, so that nothing has time to follow the report.
        while here.inbound.is_empty() {
            std::hint::spin_loop();
        }
        let state = here.transport.inner.state(&peer);
        assert!(matches!(state, Some(State::Live { .. })), "turn {turn}");
        assert_eq!(here.connected(), peer);
        here.transport.send(&peer, message(&[turn])).unwrap();
        there.connected();
        assert!(there.message() == message(&[turn]));
        there.transport.shutdown();
        assert_eq!(here.lost(), Cause::Closed);
    }
}
