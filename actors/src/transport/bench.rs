//! What the transport costs beside the machine under it, all measured in one run.
//!
//! A second process (an executable that calls [`bench_peer`]) receives. Definitions:
//! - **memcpy**: one thread copies pieces of the given size from 64 MB of sources into 64 MB of destinations, so
//!   that both lie in main memory, as tensors do.
//! - **raw tcp**: `write_all` on a loopback `TcpStream` and `read_exact` into one buffer at the other side.
//! - **throughput**: messages with one body out of the same sources, as many in flight as fit into 16 MiB but at
//!   least two; the receiver looks at the first and last byte and drops the body. Credits
//!   come back in two batches per window; counted until the last is back. Over shared memory this includes the one copy of the sender.
//! - **hand-over**: from just before `send` until the receiving thread holds the message, one at a time, by the
//!   host's clock. *In place*: the body was written into reserved memory before; *copied*: `send` copies it.
//! - **pyzmq**: the same throughput and hand-over between two Python processes, PUSH to PULL, without copies in
//!   Python.
//!
//! Cells are interleaved: each round measures every cell once. Best and median are over rounds; latencies are
//! percentiles over all rounds.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bytes::Bytes;
use crossbeam_channel::Receiver;

pub use super::bench_cells::Row;
use super::bench_cells::{CELLS, Cell, rows};
use super::bench_python::Python;
pub use super::bench_sink::bench_peer;
use super::bench_sink::{failed, wall};
use super::clock::now;
use super::hello::{hex, nonce};
use super::{Address, Inbound, Keys, Message, Options, PeerName, Transport, TransportError};

/// Bytes of the sources, and of the destinations of memcpy.
const POOL: usize = 64_000_000;
const MIB: usize = 1 << 20;
/// A step of the benchmark that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// What to run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Rounds over all cells; at least 1.
    pub rounds: usize,
    /// The executable of the second process, and the arguments before those for [`bench_peer`].
    pub peer: (PathBuf, Vec<String>),
    /// Only cells whose name contains this; all when empty.
    pub only: String,
    /// An empty directory for sockets and keys.
    pub directory: PathBuf,
    /// A Python that has pyzmq; without one its cells are left out.
    pub python: Option<PathBuf>,
}

fn silent() -> TransportError {
    failed("hear of")(std::io::ErrorKind::TimedOut.into())
}

/// A second process, ended when dropped.
struct Peer(Child);

impl Peer {
    fn spawn(plan: &Plan, arguments: &[&str]) -> Result<Self, TransportError> {
        let mut command = Command::new(&plan.peer.0);
        command.args(&plan.peer.1).args(arguments).stdin(Stdio::null());
        command.spawn().map(Self).map_err(failed("start"))
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A transport with a receiving process at its other end.
struct Wire {
    transport: Transport,
    inbound: Receiver<Inbound>,
    to: PeerName,
    _peer: Peer,
}

impl Wire {
    /// `name` is `ipc`, `plain` or `curve`.
    fn start(plan: &Plan, name: &str) -> Result<Self, TransportError> {
        let (to, token) = (PeerName::new("sink")?, nonce().map_err(failed("make a token for"))?);
        let mut options = Options::new(PeerName::new("source")?, token);
        options.bind = vec![match name {
            "ipc" => Address::Ipc { path: plan.directory.join("ipc").join("s") },
            _ => Address::Tcp { host: "127.0.0.1".to_owned(), port: 0 },
        }];
        options.plain_tcp = name == "plain";
        let (mut secret, mut server) = ("-".to_owned(), "-".to_owned());
        if name == "curve" {
            let (ours, theirs) = (Keys::generate()?, Keys::generate()?);
            secret = theirs.save(&plan.directory, "sink")?.1.display().to_string();
            server = ours.public().to_string();
            options.allow = vec![(theirs.public(), to.clone())];
            options.keys = Some(ours);
        }
        let (transport, inbound) = Transport::start(options)?;
        let address = transport.addresses()[0].to_string();
        let peer = Peer::spawn(plan, &["sink", name, &address, &secret, &server, &hex(&token)])?;
        match inbound.recv_timeout(PATIENCE) {
            Ok(Inbound::Connected { .. }) => {}
            _ => return Err(silent()),
        }
        Ok(Self { transport, inbound, to, _peer: peer })
    }

    fn reply(&self) -> Result<Message, TransportError> {
        match self.inbound.recv_timeout(PATIENCE) {
            Ok(Inbound::Message { message, .. }) => Ok(message),
            Ok(Inbound::Lost { peer, why }) => Err(TransportError::Lost { peer, why }),
            _ => Err(silent()),
        }
    }

    /// GB/s of messages with one body each.
    fn rate(&self, sources: &Sources, size: usize, total: usize) -> Result<f64, TransportError> {
        let window = (16 * MIB / size).max(2);
        let count = (total / size).max(4);
        // Credits return in batches, as consumers give them.
        let batch = window / 2;
        let run = |batches: usize| {
            for turn in 0..batches + 2 {
                if turn >= 2 {
                    self.reply()?;
                }
                for index in (0..batch).filter(|_| turn < batches) {
                    let header = if index + 1 == batch { vec![b'c'] } else { Vec::new() };
                    let body = sources.body(turn * batch + index, size);
                    self.transport.send(&self.to, Message { header, bodies: vec![body] })?;
                }
            }
            Ok::<(), TransportError>(())
        };
        let batches = count.div_ceil(batch).max(2);
        // Pages, segments and receive buffers exist after as many as are in flight at once.
        run(4)?;
        let start = now();
        run(batches)?;
        Ok((batches * batch * size) as f64 / start.elapsed().as_secs_f64() / 1e9)
    }

    /// Microseconds until the other side held each message.
    fn hand_over(
        &self,
        sources: &Sources,
        size: usize,
        in_place: bool,
    ) -> Result<Vec<f64>, TransportError> {
        let count = (256 * MIB / size).clamp(20, 300);
        let mut waits = Vec::with_capacity(count);
        for turn in 0..count + 10 {
            let body = match in_place {
                true => {
                    let mut reserved = self.transport.reserve(&self.to, size)?;
                    reserved.copy_from_slice(&sources.body(turn, size));
                    reserved.freeze()
                }
                false => sources.body(turn, size),
            };
            let mut header = vec![b't'];
            header.extend_from_slice(&wall().to_le_bytes());
            self.transport.send(&self.to, Message { header, bodies: vec![body] })?;
            let reply = self.reply()?;
            let waited = reply
                .header
                .get(1..9)
                .and_then(|bytes| bytes.try_into().ok())
                .map_or(0, u64::from_le_bytes);
            if turn >= 10 {
                waits.push(waited as f64 / 1e3);
            }
        }
        Ok(waits)
    }
}

struct Sources(Bytes);

impl Sources {
    fn body(&self, turn: usize, size: usize) -> Bytes {
        let slots = (self.0.len() / size).max(1);
        let start = turn % slots * size;
        self.0.slice(start..start + size)
    }
}

fn memcpy(sources: &Sources, destination: &mut [u8], size: usize, total: usize) -> f64 {
    let slots = destination.len() / size;
    let mut copy = |count: usize| {
        for turn in 0..count {
            let at = turn % slots * size;
            destination[at..at + size].copy_from_slice(&sources.0[at..at + size]);
            std::hint::black_box(&mut *destination);
        }
    };
    copy(slots);
    let count = (total / size).max(slots);
    let start = now();
    copy(count);
    (count * size) as f64 / start.elapsed().as_secs_f64() / 1e9
}

fn raw_tcp(
    plan: &Plan,
    sources: &Sources,
    size: usize,
    total: usize,
) -> Result<f64, TransportError> {
    let listener = TcpListener::bind("127.0.0.1:0").map_err(failed("listen for"))?;
    let address = listener.local_addr().map_err(failed("listen for"))?.to_string();
    let _peer = Peer::spawn(plan, &["raw", &address, &size.to_string()])?;
    let (mut stream, _) = listener.accept().map_err(failed("accept"))?;
    stream.set_nodelay(true).map_err(failed("accept"))?;
    let (warm, count) = ((8 * MIB / size).max(1), (total / size).max(4));
    let mut send = |count: usize| {
        for turn in 0..count {
            stream.write_all(&sources.body(turn, size))?;
        }
        // The peer answers every message with a byte.
        stream.read_exact(&mut vec![0; count])
    };
    send(warm).map_err(failed("write to"))?;
    let start = now();
    send(count).map_err(failed("write to"))?;
    Ok((count * size) as f64 / start.elapsed().as_secs_f64() / 1e9)
}

/// Measures every cell and compares.
pub fn bench_transport(plan: &Plan) -> Result<Vec<Row>, TransportError> {
    let sources =
        Sources((0..POOL).map(|index| (index * 7 + index / 4096) as u8).collect::<Vec<_>>().into());
    let mut destination = vec![1; POOL];
    let shared = Wire::start(plan, "ipc")?;
    let plain = Wire::start(plan, "plain")?;
    let curve = Wire::start(plan, "curve")?;
    let mut python = plan.python.as_deref().map(Python::start).transpose()?;
    let mut figures: Vec<Vec<f64>> = vec![Vec::new(); CELLS.len()];
    for _ in 0..plan.rounds.max(1) {
        let wanted = |cell: &Cell| cell.name().0.contains(&plan.only);
        for (cell, figures) in CELLS.iter().zip(&mut figures).filter(|(cell, _)| wanted(cell)) {
            match *cell {
                Cell::Memcpy(size) => {
                    figures.push(memcpy(&sources, &mut destination, size, 1 << 30))
                }
                Cell::Raw(size) => figures.push(raw_tcp(plan, &sources, size, 1 << 29)?),
                Cell::Shared(size) => figures.push(shared.rate(&sources, size, 1 << 30)?),
                Cell::Plain(size) => figures.push(plain.rate(&sources, size, 1 << 29)?),
                Cell::Curve(size) => figures.push(curve.rate(&sources, size, 1 << 28)?),
                Cell::InPlace(size) => figures.extend(shared.hand_over(&sources, size, true)?),
                Cell::Copied(size) => figures.extend(shared.hand_over(&sources, size, false)?),
                Cell::PyIpc(_) | Cell::PyTcp(_) | Cell::PyHandOver(_) => {
                    if let Some(python) = &mut python {
                        figures.extend(python.measure(*cell)?);
                    }
                }
            }
        }
    }
    for wire in [shared, plain, curve] {
        wire.transport.shutdown();
    }
    Ok(rows(figures))
}
