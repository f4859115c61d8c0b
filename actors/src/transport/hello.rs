//! Opening a session: who speaks, which version, and whether it may.

use std::hint::black_box;
use std::io::Read;
use std::sync::Arc;

use super::clock::now;
use super::engine::Engine;
use super::pool::Pool;
use super::session::{Session, Via, announce};
use super::side::{self, Side};
use super::wire::{Hello, Kind, MINOR, Malformed, Prefix};
use super::{Address, Cause, Inbound, PeerName, State};

/// What a hello must never be longer than when it becomes part of an error.
const REASON: usize = 200;

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn unhex(text: &str) -> Option<[u8; 16]> {
    let mut bytes = [0; 16];
    let text = text.as_bytes();
    if text.len() != 32 {
        return None;
    }
    for (out, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        let digit = |byte: u8| (byte as char).to_digit(16);
        *out = (digit(pair[0])? * 16 + digit(pair[1])?) as u8;
    }
    Some(bytes)
}

/// Compares without telling by its duration where the first difference is.
fn same(left: &[u8; 16], right: &[u8; 16]) -> bool {
    black_box(left.iter().zip(right).fold(0, |sum, (left, right)| sum | (left ^ right))) == 0
}

/// Sixteen random bytes.
pub(crate) fn nonce() -> std::io::Result<[u8; 16]> {
    let mut bytes = [0; 16];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

impl Engine {
    /// What this side says of itself.
    pub(crate) fn hello(&self, to: &str, generation: u64, nonce: &[u8; 16], ipc: bool) -> Hello {
        let options = self.options();
        Hello {
            minor: MINOR,
            name: options.me.to_string(),
            to: to.to_owned(),
            capabilities: if ipc { vec!["shm".to_owned()] } else { Vec::new() },
            generation,
            token: if ipc { hex(&options.run_token) } else { String::new() },
            nonce: hex(nonce),
            shared: options.limits.shared as u64,
            reason: String::new(),
        }
    }

    /// Takes the first message of somebody without a session at a listening socket.
    pub(crate) fn on_stranger(
        &mut self,
        index: usize,
        identity: Vec<u8>,
        frame: &mut zmq::Message,
    ) {
        let user = frame.gets("User-Id").map(str::to_owned);
        let hello = match Prefix::decode(frame) {
            Ok((prefix, rest)) if prefix.kind == Kind::Hello => Hello::decode(&prefix, rest),
            Ok(_) => return tracing::debug!("a message before the hello was ignored"),
            Err(malformed) => Err(malformed),
        };
        let admitted = match hello {
            Ok(hello) => self.admit(index, &hello, user.as_deref()).map(|peer| (peer, hello)),
            Err(malformed @ Malformed::Major { .. }) => Err(malformed.to_string()),
            Err(malformed) => {
                return tracing::debug!(%malformed, "bytes that are no hello were ignored");
            }
        };
        match admitted {
            Ok((peer, hello)) => self.welcome(index, identity, peer, &hello),
            Err(reason) => {
                tracing::warn!(reason, "a hello was refused");
                self.refuse(index, &identity, &reason);
            }
        }
    }

    /// Whether a hello may open a session, and as whom.
    fn admit(&self, index: usize, hello: &Hello, user: Option<&str>) -> Result<PeerName, String> {
        let options = self.options();
        let ipc = matches!(self.routers[index].address, Address::Ipc { .. });
        // Whoever does not prove the run learns nothing more.
        if ipc && !unhex(&hello.token).is_some_and(|token| same(&token, &options.run_token)) {
            return Err("the run token is wrong".to_owned());
        }
        let peer = PeerName::new(hello.name.as_str()).map_err(|error| error.to_string())?;
        if !ipc && !options.plain_tcp && user != Some(peer.as_str()) {
            // Whoever presents a key knows already whose it is.
            let owner = user.map(|name| format!("; it is that of `{name}`")).unwrap_or_default();
            return Err(format!("the key is not that of `{peer}`{owner}"));
        }
        if hello.to != options.me.as_str() || peer == options.me {
            return Err(format!("this is `{}`", options.me));
        }
        if !ipc && !options.plain_tcp && !self.allows(&peer) {
            return Err(format!("`{peer}` is not allowed"));
        }
        Ok(peer)
    }

    fn allows(&self, peer: &PeerName) -> bool {
        self.inner.allowed().values().any(|name| name == peer)
    }

    pub(crate) fn refuse(&mut self, index: usize, identity: &[u8], reason: &str) {
        let mut answer = self.hello("", 0, &[0; 16], false);
        answer.reason = reason.chars().take(REASON).collect();
        let frame = answer.bytes(Kind::Refuse);
        // Whoever is refused may be gone already.
        let _ = self.routers[index].socket.send_multipart([identity, &frame], zmq::DONTWAIT);
    }

    fn welcome(&mut self, index: usize, identity: Vec<u8>, peer: PeerName, hello: &Hello) {
        let ipc = matches!(self.routers[index].address, Address::Ipc { .. });
        let answer = self.hello(peer.as_str(), hello.generation, &[0; 16], false);
        let mut answer = Hello { nonce: hello.nonce.clone(), ..answer };
        if ipc {
            answer.capabilities.push("shm".to_owned());
        }
        let sent = self.routers[index]
            .socket
            .send_multipart([&identity[..], &answer.bytes(Kind::Welcome)], zmq::DONTWAIT);
        if let Err(error) = sent {
            return tracing::debug!(%error, %peer, "a peer left before its welcome");
        }
        let via = Via::Router { index, identity: identity.clone() };
        let mut session = Session::new(
            peer,
            via,
            unhex(&hello.nonce).unwrap_or_default(),
            self.means.clone(),
            now(),
        );
        session.shares = ipc && hello.capabilities.iter().any(|name| name == "shm");
        let id = self.open(session, hello);
        self.routers[index].routes.insert(identity, id);
        self.connected(id, hello);
    }

    /// Takes an answer at a connecting socket that has no session yet.
    pub(crate) fn on_answer(&mut self, peer: &PeerName, frame: &zmq::Message) {
        let decoded = Prefix::decode(frame)
            .and_then(|(prefix, rest)| Ok((prefix.kind, Hello::decode(&prefix, rest)?)));
        let Some(dialer) = self.dialers.get_mut(peer) else { return };
        match decoded {
            Ok((Kind::Welcome, hello))
                if hello.name == peer.as_str() && hello.generation == dialer.generation =>
            {
                let mut session = Session::new(
                    peer.clone(),
                    Via::Dialer,
                    dialer.nonce,
                    self.means.clone(),
                    now(),
                );
                session.shares = hello.capabilities.iter().any(|name| name == "shm");
                dialer.refused = None;
                let address = dialer.address.clone();
                let id = self.open(session, &hello);
                if let Some(dialer) = self.dialers.get_mut(peer) {
                    dialer.session = Some(id);
                }
                if let Address::Ipc { path } = address {
                    self.join_side(id, &side::path(&path), &hello);
                }
                self.connected(id, &hello);
            }
            Ok((Kind::Refuse, hello)) => {
                let reason = hello.reason.chars().take(REASON).collect();
                self.dial_failed(peer, Cause::Refused { reason });
            }
            Ok(_) => self
                .dial_failed(peer, Cause::Refused { reason: "another peer answered".to_owned() }),
            Err(malformed) => {
                self.dial_failed(peer, Cause::Refused { reason: malformed.to_string() })
            }
        }
    }

    /// Opens a session, replacing an older one with the same peer.
    fn open(&mut self, mut session: Session, hello: &Hello) -> u64 {
        let peer = session.peer.clone();
        if let Some(old) = self.current.get(&peer).copied() {
            self.end(old, Cause::Replaced);
        }
        if let Some(State::Waiting { out }) = self.inner.state(&peer) {
            // Messages that wait are counted there.
            session.out = out;
        }
        self.next_session += 1;
        let id = self.next_session;
        self.sessions.insert(id, session);
        self.current.insert(peer, id);
        self.shared_limit.insert(id, usize::try_from(hello.shared).unwrap_or(usize::MAX));
        id
    }

    /// Reports a session, once callers can send: whoever hears of it may do so at once.
    fn connected(&mut self, id: u64, hello: &Hello) {
        self.set_live(id);
        let Some(peer) = self.sessions.get(&id).map(|session| session.peer.clone()) else { return };
        tracing::debug!(%peer, generation = hello.generation, "session open");
        self.report(Inbound::Connected { peer, generation: hello.generation });
    }

    /// Lets callers send, and sends what has waited.
    fn set_live(&mut self, id: u64) {
        let Some(session) = self.sessions.get(&id) else { return };
        let peer = session.peer.clone();
        let pool = self.pool(id);
        let Some(session) = self.sessions.get(&id) else { return };
        let out = Arc::clone(&session.out);
        self.inner.set_state(&peer, State::Live { session: id, out, pool });
        for (message, charge) in self.early.remove(&peer).unwrap_or_default() {
            self.send_early(id, &message, charge);
        }
    }

    /// The shared memory towards a peer, once its side socket is there.
    fn pool(&mut self, id: u64) -> Option<Arc<Pool>> {
        if let Some(pool) = self.pools.get(&id) {
            return Some(Arc::clone(pool));
        }
        let session = self.sessions.get(&id)?;
        let side = session.side.as_ref()?.try_clone().ok()?;
        session.out.open(session.side.as_ref()?.try_clone().ok()?);
        let theirs = self.shared_limit.get(&id).copied().unwrap_or(0);
        let limit = self.options().limits.shared.min(theirs);
        let pool =
            Pool::new(limit, Box::new(move |number, segment| announce(&side, number, segment)));
        self.pools.insert(id, Arc::clone(&pool));
        Some(pool)
    }

    /// The connecting side opens the side socket and names the session.
    fn join_side(&mut self, id: u64, path: &std::path::Path, hello: &Hello) {
        let token = self.options().run_token;
        let Some(session) = self.sessions.get_mut(&id).filter(|session| session.shares) else {
            return;
        };
        let nonce = session.nonce;
        let joined = Side::connect(path)
            .and_then(|side| side.send(&side::opening(&token, &nonce), &[]).map(|()| side));
        match joined {
            Ok(side) => session.side = Some(side),
            Err(error) => {
                tracing::warn!(%error, peer = hello.name, "no side socket, bodies travel as chunks")
            }
        }
    }

    /// Takes every process that waits at a side socket.
    pub(crate) fn accept_sides(&mut self, index: usize) {
        while let Some(side) = self.routers[index].side.as_ref().and_then(side::Listener::accept) {
            self.strangers.push_back((side, now()));
            if self.strangers.len() > 64 {
                self.strangers.pop_front();
            }
        }
        self.match_sides();
    }

    /// Gives each side socket that has named its session to that session.
    pub(crate) fn match_sides(&mut self) {
        let token = self.options().run_token;
        for (side, since) in std::mem::take(&mut self.strangers) {
            let mut packet = [0; side::OPENING + 1];
            let nonce = match side.receive(&mut packet) {
                side::Received::Nothing => {
                    self.strangers.push_back((side, since));
                    continue;
                }
                side::Received::Ended => continue,
                side::Received::Packet(len, _) => {
                    side::opened(&packet[..len]).filter(|(said, _)| same(said, &token))
                }
            };
            let Some((_, nonce)) = nonce else { continue };
            let wanted = |session: &&mut Session| {
                session.shares && session.side.is_none() && same(&session.nonce, &nonce)
            };
            if let Some((&id, session)) =
                self.sessions.iter_mut().find(|(_, session)| wanted(session))
            {
                session.side = Some(side);
                self.set_live(id);
            }
        }
    }
}
