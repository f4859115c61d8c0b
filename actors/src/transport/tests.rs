//! Round trips between transports of one process, and between two processes.

use std::time::Duration;

use crossbeam_channel::Receiver;
use proptest::prelude::*;

use super::*;

const TOKEN: [u8; 16] = [7; 16];
/// Far above what any step takes, so that a busy machine fails no test.
const PATIENCE: Duration = Duration::from_secs(10);

fn name(text: &str) -> PeerName {
    PeerName::new(text).unwrap()
}

fn ipc(directory: &tempfile::TempDir) -> Address {
    Address::Ipc { path: directory.path().join("ipc/s") }
}

fn loopback() -> Address {
    Address::Tcp { host: "127.0.0.1".into(), port: 0 }
}

struct Side {
    transport: Transport,
    inbound: Receiver<Inbound>,
}

impl Side {
    fn start(options: Options) -> Self {
        let (transport, inbound) = Transport::start(options).unwrap();
        Self { transport, inbound }
    }

    fn connected(&self) -> PeerName {
        match self.inbound.recv_timeout(PATIENCE).unwrap() {
            Inbound::Connected { peer, .. } => peer,
            other => panic!("{other:?}"),
        }
    }

    fn message(&self) -> Message {
        match self.inbound.recv_timeout(PATIENCE).unwrap() {
            Inbound::Message { message, .. } => message,
            other => panic!("{other:?}"),
        }
    }

    fn lost(&self) -> Cause {
        match self.inbound.recv_timeout(PATIENCE).unwrap() {
            Inbound::Lost { why, .. } => why,
            other => panic!("{other:?}"),
        }
    }
}

fn options(me: &str) -> Options {
    Options::new(name(me), TOKEN)
}

/// Two connected transports: the first listens.
fn ipc_pair(change: impl Fn(&mut Options)) -> (Side, Side, tempfile::TempDir) {
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

fn tcp_pair() -> (Side, Side) {
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

fn message(sizes: &[usize]) -> Message {
    let bodies = sizes.iter().enumerate().map(|(seed, len)| body(*len, seed)).collect();
    Message { header: format!("{sizes:?}").into_bytes(), bodies }
}

fn wait_for_memory(side: &Side, peer: &PeerName) {
    let start = clock::now();
    while !side.transport.shares_memory(peer) {
        assert!(start.elapsed() < PATIENCE, "no shared memory");
        std::thread::yield_now();
    }
}

fn there_and_back(here: &Side, there: &Side, message: &Message) {
    there.transport.send(&name("here"), message.clone()).unwrap();
    let got = here.message();
    assert!(got == *message, "changed on the way");
    let aligned = |body: &Bytes| body.is_empty() || body.as_ptr().align_offset(64) == 0;
    assert!(got.bodies.iter().all(aligned));
    here.transport.send(&name("there"), got).unwrap();
    assert!(there.message() == *message, "changed on the way back");
}

const SIZES: [&[usize]; 7] = [
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
