//! Messages between processes: one [`Transport`] per process, peers by name.
//!
//! A process listens at addresses and connects to its peers; either side of a session sends. A [`Message`] is a
//! small header and bodies of any size. Between processes of one host (`ipc://`) large bodies lie in shared
//! memory and only the header travels; between hosts (`tcp://`) everything is encrypted and admitted by key
//! (CURVE), large bodies in chunks of 1 MiB.
//!
//! What is guaranteed:
//! - messages that one thread sends to one peer arrive in that order, whole, once, or the peer is reported
//!   [`Inbound::Lost`]; what was accepted before a loss may not have arrived;
//! - sending never waits for a peer: more than [`Limits::queued`] is an error, a full shared memory is not;
//! - bodies arrive 64-byte aligned; dropping them gives their memory back to the sender or to the next body;
//! - no bytes from outside panic, or take memory beyond [`Limits`].
//!
//! The wire format is documented in `wire.rs`.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::JoinHandle;

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender};

mod address;
mod assembly;
pub mod bench;
mod bench_cells;
mod bench_python;
mod bench_sink;
mod buffers;
mod clock;
mod copy;
mod dial;
mod engine;
mod error;
mod hello;
#[cfg(test)]
mod hostile;
mod keys;
mod listen;
mod options;
mod out;
mod place;
mod poll;
mod pool;
#[cfg(test)]
mod process_tests;
mod session;
mod shared;
mod side;
mod sockets;
#[cfg(test)]
mod tests;
mod wake;
mod wire;
mod zap;

pub use address::{Address, PeerName};
pub use error::{Cause, TransportError};
pub use keys::{Keys, PublicKey};
pub use options::{Heartbeat, Limits, Options};
pub use place::Reserved;

use buffers::Buffers;
use out::Out;
use place::{Charge, Memory, Outgoing};
use pool::Pool;
use wake::Wake;

/// What travels: a header in the caller's encoding, and bodies.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Message {
    /// At most [`Limits::header`] bytes.
    pub header: Vec<u8>,
    /// Tensor bytes, each at most [`Limits::body`].
    pub bodies: Vec<Bytes>,
}

impl Message {
    fn len(&self) -> usize {
        self.bodies.iter().fold(self.header.len(), |sum, body| sum.saturating_add(body.len()))
    }
}

/// What a transport reports.
#[derive(Debug)]
pub enum Inbound {
    /// A session with a peer is open.
    Connected {
        /// The peer.
        peer: PeerName,
        /// Chosen by the connecting side; a reconnect has a greater one.
        generation: u64,
    },
    /// A message came.
    Message {
        /// Its sender.
        peer: PeerName,
        /// The message.
        message: Message,
    },
    /// A session ended, or could not be opened for a reason that will not go away by itself.
    ///
    /// The connecting side tries again until it is told to [`Transport::forget`].
    Lost {
        /// The peer.
        peer: PeerName,
        /// Why.
        why: Cause,
    },
}

/// The transport of a process. Owns every socket, on one thread of its own; any number of threads may call it.
pub struct Transport {
    inner: Arc<Inner>,
    addresses: Vec<Address>,
    thread: Option<JoinHandle<()>>,
}

/// What callers and the IO thread share.
pub(crate) struct Inner {
    options: Options,
    commands: Sender<Command>,
    wake: Wake,
    peers: RwLock<BTreeMap<PeerName, State>>,
    allow: Mutex<BTreeMap<PublicKey, PeerName>>,
    queued: Arc<AtomicUsize>,
    drafts: Arc<Buffers>,
}

/// How a peer stands.
#[derive(Clone)]
pub(crate) enum State {
    /// Connecting for the first time: messages wait.
    Waiting { out: Arc<Out> },
    /// A session is open.
    Live { session: u64, out: Arc<Out>, pool: Option<Arc<Pool>> },
    /// The last session ended.
    Lost { why: Cause },
}

/// What a caller asks of the IO thread.
pub(crate) enum Command {
    Connect {
        peer: PeerName,
        address: Address,
        server: Option<PublicKey>,
    },
    /// A message for a session, placed on the caller's thread.
    Placed {
        session: u64,
        outgoing: Outgoing,
    },
    /// A message for a peer without a session yet.
    Early {
        peer: PeerName,
        message: Message,
        charge: Charge,
    },
    Forget {
        peer: PeerName,
    },
    Stop,
}

impl Inner {
    pub(crate) fn allowed(&self) -> MutexGuard<'_, BTreeMap<PublicKey, PeerName>> {
        self.allow.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn state(&self, peer: &PeerName) -> Option<State> {
        self.peers.read().unwrap_or_else(PoisonError::into_inner).get(peer).cloned()
    }

    pub(crate) fn set_state(&self, peer: &PeerName, state: State) {
        self.peers.write().unwrap_or_else(PoisonError::into_inner).insert(peer.clone(), state);
    }

    /// Lets messages for a peer wait, in the queue that may already be there.
    pub(crate) fn set_waiting(&self, peer: &PeerName) {
        let mut peers = self.peers.write().unwrap_or_else(PoisonError::into_inner);
        if !matches!(peers.get(peer), Some(State::Waiting { .. })) {
            peers.insert(peer.clone(), State::Waiting { out: Arc::default() });
        }
    }

    fn command(&self, command: Command) -> Result<(), TransportError> {
        self.commands.send(command).map_err(|_| TransportError::Stopped)?;
        self.wake.kick();
        Ok(())
    }

    fn check(&self, to: &PeerName, message: &Message) -> Result<(), TransportError> {
        let limits = &self.options.limits;
        let body = message.bodies.iter().map(Bytes::len).max().unwrap_or(0);
        let parts = [
            ("header", message.header.len(), limits.header),
            ("bodies", message.bodies.len(), limits.bodies.min(u16::MAX.into())),
            ("body", body, limits.body),
            ("message", message.len() - message.header.len(), limits.message),
        ];
        match parts.into_iter().find(|(_, len, limit)| len > limit) {
            Some((part, len, limit)) => {
                Err(TransportError::TooLarge { peer: to.clone(), part, len, limit })
            }
            None => Ok(()),
        }
    }
}

impl Transport {
    /// Binds every address and starts the IO thread. What happens is reported at the receiver.
    pub fn start(options: Options) -> Result<(Self, Receiver<Inbound>), TransportError> {
        if !matches!(zmq::has("curve"), Some(true)) {
            return Err(TransportError::CurveMissing);
        }
        let wake = Wake::new().map_err(|source| TransportError::io("make", "eventfd", source))?;
        let (commands, orders) = crossbeam_channel::unbounded();
        let (inbound, receiver) = crossbeam_channel::unbounded();
        let inner = Arc::new(Inner {
            allow: Mutex::new(options.allow.iter().cloned().collect()),
            options,
            commands,
            wake,
            peers: RwLock::default(),
            queued: Arc::default(),
            drafts: Buffers::new(usize::MAX),
        });
        let (engine, addresses) = engine::Engine::new(Arc::clone(&inner), orders, inbound)?;
        let name = format!("transport-{}", inner.options.me);
        let thread = std::thread::Builder::new()
            .name(name.chars().take(15).collect())
            .spawn(move || engine.run())
            .map_err(|source| TransportError::io("start", "transport thread", source))?;
        Ok((Self { inner, addresses, thread: Some(thread) }, receiver))
    }

    /// Where this process listens, with real ports, in the order of [`Options::bind`].
    pub fn addresses(&self) -> Vec<Address> {
        self.addresses.clone()
    }

    /// Begins to connect, and keeps trying until [`Transport::forget`]; the outcome is reported as [`Inbound`].
    ///
    /// Messages sent meanwhile wait. A later call for the same peer replaces the earlier one.
    pub fn connect(
        &self,
        peer: &PeerName,
        address: &Address,
        server_key: Option<PublicKey>,
    ) -> Result<(), TransportError> {
        let open = self.inner.options.plain_tcp || matches!(address, Address::Ipc { .. });
        if !open && (self.inner.options.keys.is_none() || server_key.is_none()) {
            return Err(TransportError::KeysMissing { address: address.clone() });
        }
        self.inner.set_waiting(peer);
        self.inner.command(Command::Connect {
            peer: peer.clone(),
            address: address.clone(),
            server: server_key,
        })
    }

    /// Queues a message. Never waits for the peer; copies large bodies into shared memory where there is some.
    pub fn send(&self, to: &PeerName, message: Message) -> Result<(), TransportError> {
        self.inner.check(to, &message)?;
        let limit = self.inner.options.limits.queued;
        // Records and prefix are small beside the smallest limit that makes sense.
        let len = message.len() + 64 * (message.bodies.len() + 1);
        let full = |queued| TransportError::QueueFull { peer: to.clone(), queued, len, limit };
        let charge = || Charge::take(&self.inner.queued, len, limit).map_err(full);
        let peer = to.clone();
        match self.inner.state(to) {
            None => Err(TransportError::Unknown { peer }),
            Some(State::Lost { why }) => Err(TransportError::Lost { peer, why }),
            Some(State::Waiting { out }) => {
                let charge = charge()?;
                out.wait();
                self.inner.command(Command::Early { peer, message, charge })
            }
            Some(State::Live { session, out, pool }) => {
                match out.direct(place::place(&message, pool.as_ref(), charge()?)) {
                    Some(outgoing) => self.inner.command(Command::Placed { session, outgoing }),
                    None => Ok(()),
                }
            }
        }
    }

    /// Memory for a body of `len` bytes that will be sent to this peer, in shared memory where there is some.
    pub fn reserve(&self, to: &PeerName, len: usize) -> Result<Reserved, TransportError> {
        let limit = self.inner.options.limits.body;
        let refused = || TransportError::TooLarge { peer: to.clone(), part: "body", len, limit };
        if len > limit {
            return Err(refused());
        }
        if len == 0 {
            return Ok(Reserved(Memory::Empty));
        }
        if len >= wire::INLINE
            && let Some(State::Live { pool: Some(pool), .. }) = self.inner.state(to)
            && let Some(filling) = pool.reserve(len)
        {
            return Ok(Reserved(Memory::Shared(filling)));
        }
        self.inner
            .drafts
            .take(len)
            .map(|buffer| Reserved(Memory::Private(buffer)))
            .ok_or_else(refused)
    }

    /// True when bodies for this peer travel in shared memory.
    pub fn shares_memory(&self, peer: &PeerName) -> bool {
        matches!(self.inner.state(peer), Some(State::Live { pool: Some(_), .. }))
    }

    /// Admits a key over tcp, as this peer.
    pub fn allow(&self, key: PublicKey, peer: PeerName) {
        self.inner.allowed().insert(key, peer);
    }

    /// Ends the session with a peer, stops connecting to it and takes its keys off the allow-list.
    pub fn forget(&self, peer: &PeerName) -> Result<(), TransportError> {
        self.inner.allowed().retain(|_, name| name != peer);
        self.inner.command(Command::Forget { peer: peer.clone() })
    }

    /// Says goodbye, gives queued messages up to two seconds to leave, and closes everything.
    pub fn shutdown(mut self) {
        self.stop();
    }

    fn stop(&mut self) {
        if let Some(thread) = self.thread.take() {
            // A thread that is already gone needs no order.
            let _ = self.inner.command(Command::Stop);
            if thread.join().is_err() {
                tracing::error!("the transport thread had panicked");
            }
        }
    }
}

impl Drop for Transport {
    fn drop(&mut self) {
        self.stop();
    }
}
