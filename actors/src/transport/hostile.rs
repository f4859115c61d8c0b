//! Bytes and peers from outside that mean no good: nothing of theirs is delivered, and good peers are served.

use std::io::Write;
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use proptest::prelude::*;

use super::tests::{
    PATIENCE, Side, TOKEN, ipc, ipc_pair, loopback, message, name, options, there_and_back,
};
use super::wire::{self, Hello, Kind, Place, Prefix, Record, Slot};
use super::*;

/// Long enough for what must not happen to happen.
const MOMENT: Duration = Duration::from_millis(700);

fn server(keys: &Keys, allow: &[(PublicKey, &str)]) -> Side {
    let mut served = options("here");
    served.bind = vec![loopback()];
    served.keys = Some(keys.clone());
    served.allow = allow.iter().map(|(key, peer)| (*key, name(peer))).collect();
    Side::start(served)
}

fn client(me: &str, keys: &Keys, server: &Side, key: PublicKey) -> Side {
    let mut options = options(me);
    options.keys = Some(keys.clone());
    let side = Side::start(options);
    side.transport.connect(&name("here"), &server.transport.addresses()[0], Some(key)).unwrap();
    side
}

/// The good peer still gets through, and nothing came before it.
fn still_serves(server: &Side, keys: &Keys, key: PublicKey) {
    let good = client("good", keys, server, key);
    assert_eq!(server.connected(), name("good"));
    good.connected();
    there_and_back(server, &good, &message(&[100_000, 3]));
    drop(good);
    assert_eq!(server.lost(), Cause::Closed);
}

#[test]
fn an_unknown_key_a_wrong_server_key_and_a_false_name_deliver_nothing() {
    let [ours, good, unknown] = [0; 3].map(|_| Keys::generate().unwrap());
    let here = server(&ours, &[(good.public(), "good")]);
    let bad = [
        ("good", &unknown, ours.public(), "does not allow this key"),
        ("good", &good, unknown.public(), "server key may be wrong"),
        ("other", &good, ours.public(), "the key is not that of `other`; it is that of `good`"),
    ];
    for (me, keys, key, expected) in bad {
        let side = client(me, keys, &here, key);
        // It may be refused already.
        let _ = side.transport.send(&name("here"), message(&[10]));
        let Cause::Refused { reason } = side.lost() else { panic!("not refused") };
        assert!(reason.contains(expected), "{reason}");
    }
    assert!(here.inbound.is_empty());
    still_serves(&here, &good, ours.public());
}

#[test]
fn a_peer_without_keys_delivers_nothing() {
    let [ours, good] = [0; 2].map(|_| Keys::generate().unwrap());
    let here = server(&ours, &[(good.public(), "good")]);
    let context = zmq::Context::new();
    let bare = context.socket(zmq::DEALER).unwrap();
    bare.set_linger(0).unwrap();
    bare.connect(&here.transport.addresses()[0].to_string()).unwrap();
    bare.send(hello("good", "here", &TOKEN).bytes(Kind::Hello), 0).unwrap();
    assert!(here.inbound.recv_timeout(MOMENT).is_err());
    still_serves(&here, &good, ours.public());
}

#[test]
fn a_key_is_admitted_after_allow_and_cut_by_forget() {
    let [ours, late] = [0; 2].map(|_| Keys::generate().unwrap());
    let here = server(&ours, &[]);
    here.transport.allow(late.public(), name("good"));
    let good = client("good", &late, &here, ours.public());
    good.connected();
    here.connected();
    here.transport.forget(&name("good")).unwrap();
    assert_eq!(here.lost(), Cause::Forgotten);
    assert!(matches!(good.lost(), Cause::Closed));
    assert!(matches!(good.lost(), Cause::Refused { .. }), "its key is off the list");
}

fn hello(me: &str, to: &str, token: &[u8; 16]) -> Hello {
    Hello {
        minor: 0,
        name: me.to_owned(),
        to: to.to_owned(),
        capabilities: vec!["shm".to_owned()],
        generation: 1,
        token: super::hello::hex(token),
        nonce: super::hello::hex(&[1; 16]),
        shared: 1 << 20,
        reason: String::new(),
    }
}

/// A ZeroMQ peer that is not a transport.
fn stranger(directory: &tempfile::TempDir) -> (zmq::Context, zmq::Socket) {
    let context = zmq::Context::new();
    let socket = context.socket(zmq::DEALER).unwrap();
    socket.set_linger(0).unwrap();
    socket.set_rcvtimeo(PATIENCE.as_millis() as i32).unwrap();
    socket.connect(&ipc(directory).to_string()).unwrap();
    (context, socket)
}

fn ipc_server() -> (Side, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let mut served = options("here");
    served.bind = vec![ipc(&directory)];
    (Side::start(served), directory)
}

fn refusal(frame: &[u8]) -> String {
    let (prefix, rest) = Prefix::decode(frame).unwrap();
    assert_eq!(prefix.kind, Kind::Refuse);
    Hello::decode(&prefix, rest).unwrap().reason
}

#[test]
fn a_hello_that_may_not_open_a_session_is_refused_with_the_reason() {
    let (here, directory) = ipc_server();
    let mut newer = hello("a", "here", &TOKEN).bytes(Kind::Hello);
    newer[5] = 2;
    let cases = [
        (hello("a", "here", &[8; 16]).bytes(Kind::Hello), "the run token is wrong"),
        (hello("a", "elsewhere", &TOKEN).bytes(Kind::Hello), "this is `here`"),
        (hello("no\nname", "here", &TOKEN).bytes(Kind::Hello), "is not 1 to 64 of"),
        (newer, "major version 2 is spoken there, 1 here"),
    ];
    for (bytes, reason) in cases {
        let (_context, socket) = stranger(&directory);
        socket.send(&bytes, 0).unwrap();
        let answer = refusal(&socket.recv_bytes(0).unwrap());
        assert!(answer.contains(reason), "{answer}");
    }
    assert!(here.inbound.is_empty());
}

#[test]
fn a_peer_that_breaks_the_protocol_is_cut_with_the_reason() {
    let (here, directory) = ipc_server();
    let far = Slot { segment: 9, slot: 0, generation: 1, offset: 0 };
    let numbered = |records: &[Record]| {
        let mut frame = wire::data(records, b"", &[]);
        wire::number(&mut frame, 1);
        frame
    };
    let raw = |kind, count, size| Prefix { kind, count, sequence: 1, size }.bytes().to_vec();
    let cases = [
        (vec![raw(Kind::Data, 0, 1 << 62)], "above"),
        (vec![raw(Kind::Data, 200, 0)], "its fields say"),
        (vec![raw(Kind::Data, u16::MAX, 0)], "above"),
        (vec![numbered(&[Record { place: Place::Chunks, len: 1 << 62 }])], "above"),
        (vec![numbered(&[Record { place: Place::Shared(far), len: 64 }])], "never announced"),
        (vec![raw(Kind::Chunk, 0, 0), vec![1]], "belongs to no message"),
        (vec![raw(Kind::Heartbeat, 0, 0), vec![1], vec![2], vec![3]], "more than two frames"),
        (vec![b"garbage".to_vec()], "too few"),
    ];
    for (frames, expected) in cases {
        let (_context, socket) = stranger(&directory);
        socket.send(hello("bad", "here", &TOKEN).bytes(Kind::Hello), 0).unwrap();
        assert_eq!(here.connected(), name("bad"));
        socket.recv_bytes(0).unwrap();
        socket.send_multipart(&frames, 0).unwrap();
        let Cause::Protocol { reason } = here.lost() else { panic!("another cause") };
        assert!(reason.contains(expected), "{reason} instead of {expected}");
    }
    let good = Side::start(options("good"));
    good.transport.connect(&name("here"), &ipc(&directory), None).unwrap();
    assert_eq!(here.connected(), name("good"));
    good.connected();
    there_and_back(&here, &good, &message(&[1 << 20]));
}

#[test]
fn a_frame_above_the_largest_never_reaches_the_process() {
    let (here, directory) = ipc_server();
    let (_context, socket) = stranger(&directory);
    socket.send(hello("bad", "here", &TOKEN).bytes(Kind::Hello), 0).unwrap();
    assert_eq!(here.connected(), name("bad"));
    socket.send(vec![0; 32 << 20], 0).unwrap();
    assert_ne!(here.lost(), Cause::Closed);
}

#[test]
fn an_open_directory_is_refused_with_the_remedy() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut open = options("here");
    open.bind = vec![Address::Ipc { path: directory.path().join("s") }];
    let error = Transport::start(open).err().unwrap().to_string();
    assert!(error.contains("chmod 700"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]
    #[test]
    fn raw_bytes_at_any_socket_end_nothing(
        greeting in prop_oneof![Just(&b"\xff\0\0\0\0\0\0\0\x01\x7f\x03\x01NULL"[..]), Just(&b"\xff\0\0\0\0\0\0\0\x01\x7f\x01"[..]), Just(&b""[..])],
        bytes in proptest::collection::vec(any::<u8>(), 0..3000),
    ) {
        let keys = Keys::generate().unwrap();
        let good = Keys::generate().unwrap();
        let here = server(&keys, &[(good.public(), "good")]);
        let Address::Tcp { port, .. } = here.transport.addresses().remove(0) else { panic!("tcp") };
        let mut raw = TcpStream::connect(("127.0.0.1", port)).unwrap();
        // It may be closed while it is written to.
        let _ = raw.write_all(greeting).and_then(|()| raw.write_all(&bytes));
        still_serves(&here, &good, keys.public());

        let (here, there, directory) = ipc_pair(|_| {});
        let mut raw = UnixStream::connect(directory.path().join("ipc/s")).unwrap();
        let _ = raw.write_all(greeting).and_then(|()| raw.write_all(&bytes));
        let side = super::side::Side::connect(&directory.path().join("ipc/s.side")).unwrap();
        let _ = side.send(&bytes, &[]);
        there_and_back(&here, &there, &message(&[100_000, 3]));
    }
}
