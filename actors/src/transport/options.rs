//! What a transport is started with.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Address, Keys, PeerName, PublicKey};

/// Everything a transport needs to know at its start.
#[derive(Debug, Clone)]
pub struct Options {
    /// The name of this process.
    pub me: PeerName,
    /// Where to listen; a tcp port of 0 lets the system choose.
    pub bind: Vec<Address>,
    /// This process's key pair; needed for any tcp address.
    pub keys: Option<Keys>,
    /// Who may connect over tcp, and as whom.
    pub allow: Vec<(PublicKey, PeerName)>,
    /// Whose keys are, admitted or not: what a refusal says.
    pub known: BTreeMap<PublicKey, String>,
    /// Bounds on what is sent and received.
    pub limits: Limits,
    /// How a dead peer is found.
    pub heartbeat: Heartbeat,
    /// Shared by the processes of a run; ipc peers must present it.
    pub run_token: [u8; 16],
    /// Leaves tcp unencrypted and open: only the benchmark, on loopback, may set it.
    pub(crate) plain_tcp: bool,
}

impl Options {
    /// Options with default limits, that bind nothing and admit nobody over tcp.
    pub fn new(me: PeerName, run_token: [u8; 16]) -> Self {
        Self {
            me,
            bind: Vec::new(),
            keys: None,
            allow: Vec::new(),
            known: BTreeMap::new(),
            limits: Limits::default(),
            heartbeat: Heartbeat::default(),
            run_token,
            plain_tcp: false,
        }
    }
}

/// Bounds on what is sent and received, bytes unless said otherwise.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Largest header; default 1 MiB.
    pub header: usize,
    /// Bodies of one message, a number; default 256.
    pub bodies: usize,
    /// Largest body; default 1 GiB.
    pub body: usize,
    /// All bodies of one message; default 2 GiB.
    pub message: usize,
    /// All that waits in this process for the wire; default 4 GiB.
    pub queued: usize,
    /// All received bodies that this process still holds outside shared memory; default 8 GiB.
    pub held: usize,
    /// Shared memory towards one ipc peer, and from it; default 4 GiB. What is above it travels as chunks.
    pub shared: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            header: 1 << 20,
            bodies: 256,
            body: 1 << 30,
            message: 2 << 30,
            queued: 4 << 30,
            held: 8 << 30,
            shared: 4 << 30,
        }
    }
}

/// How a dead peer is found.
#[derive(Debug, Clone)]
pub struct Heartbeat {
    /// A sign of life is sent this often; default 400 ms.
    pub interval: Duration,
    /// A peer that gave no sign of life for this long is lost; default 1600 ms.
    pub timeout: Duration,
}

impl Default for Heartbeat {
    fn default() -> Self {
        Self { interval: Duration::from_millis(400), timeout: Duration::from_millis(1600) }
    }
}
