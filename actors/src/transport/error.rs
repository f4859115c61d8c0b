//! What can go wrong, and why a peer was lost.

use std::path::PathBuf;
use std::time::Duration;

use super::{Address, PeerName};

/// Why a transport refused something.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// A name is empty, too long or has a character outside the set.
    #[error("peer name `{name}` is not 1 to 64 of [A-Za-z0-9_.-/:]")]
    PeerName {
        /// The refused name, cut to 64 characters.
        name: String,
    },
    /// An address that is neither `ipc:///path` nor `tcp://host:port`.
    #[error("address `{text}` is not `ipc:///path` (at most 96 bytes) or `tcp://host:port`")]
    Address {
        /// The refused text.
        text: String,
    },
    /// A tcp address without keys of its own or of the other side.
    #[error(
        "no keys for `{address}`: every tcp endpoint needs keys; make them with `playhouse keys`"
    )]
    KeysMissing {
        /// The address.
        address: Address,
    },
    /// A key text is not 40 characters of Z85.
    #[error("a key in `{path}` is not 40 characters of Z85")]
    Key {
        /// The file, or `text` when it came from elsewhere.
        path: PathBuf,
    },
    /// A secret key that others may read.
    #[error("secret key is readable by others (mode {mode:o}): run `chmod 600 {path}`")]
    SecretOpen {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A directory of ipc sockets that others may enter.
    #[error("ipc directory is open to others (mode {mode:o}): run `chmod 700 {path}`")]
    DirectoryOpen {
        /// The directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A file or a system call failed.
    #[error("cannot {doing} `{path}`: {source}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// libzmq refused an operation.
    #[error("cannot {doing}: {source}")]
    Zmq {
        /// What was tried.
        doing: String,
        /// The cause.
        source: zmq::Error,
    },
    /// libzmq was built without CURVE.
    #[error("libzmq has no CURVE: build with the workspace's patched `zmq-sys`")]
    CurveMissing,
    /// No session was ever opened with this peer.
    #[error("peer `{peer}` is unknown: connect to it, or wait until it has connected")]
    Unknown {
        /// The peer.
        peer: PeerName,
    },
    /// The peer was lost and has not come back.
    #[error("peer `{peer}` is lost: {why}")]
    Lost {
        /// The peer.
        peer: PeerName,
        /// Why.
        why: Cause,
    },
    /// More is queued for the wire than allowed.
    #[error(
        "{queued} bytes are queued and `{peer}` was to get {len} more, above the limit {limit}: wait for credits"
    )]
    QueueFull {
        /// The peer.
        peer: PeerName,
        /// Bytes queued now.
        queued: usize,
        /// Bytes of the refused message.
        len: usize,
        /// The limit.
        limit: usize,
    },
    /// A part of a message is larger than allowed.
    #[error("{part} for `{peer}` is {len}, above the limit {limit}")]
    TooLarge {
        /// The peer.
        peer: PeerName,
        /// `header`, `body`, `message` or `bodies` (their number).
        part: &'static str,
        /// The size.
        len: usize,
        /// The limit.
        limit: usize,
    },
    /// The transport has been shut down.
    #[error("the transport is shut down")]
    Stopped,
}

impl TransportError {
    pub(crate) fn io(
        doing: &'static str,
        path: impl Into<PathBuf>,
        source: std::io::Error,
    ) -> Self {
        Self::Io { doing, path: path.into(), source }
    }

    pub(crate) fn zmq(doing: impl Into<String>) -> impl FnOnce(zmq::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Zmq { doing, source }
    }
}

/// Why a peer was lost.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Cause {
    /// It said goodbye.
    #[error("it shut down")]
    Closed,
    /// Its socket is gone: the process died or the network was cut.
    #[error("its socket is gone")]
    Disconnected,
    /// Nothing was heard of it for this long.
    #[error("nothing heard for {} ms", silence.as_millis())]
    Silent {
        /// The time since its last sign of life.
        silence: Duration,
    },
    /// It, or this side, refused the hello.
    #[error("refused: {reason}")]
    Refused {
        /// The reason given.
        reason: String,
    },
    /// It broke the protocol.
    #[error("it broke the protocol: {reason}")]
    Protocol {
        /// What was wrong.
        reason: String,
    },
    /// The same peer opened a newer session.
    #[error("replaced by a newer session")]
    Replaced,
    /// This side forgot it.
    #[error("forgotten by this side")]
    Forgotten,
}
