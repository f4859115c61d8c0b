//! The IO thread: one poll over every socket, and what each of them leads to.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::{Receiver, Sender};

use super::assembly::broken;
use super::buffers::Buffers;
use super::clock::now;
use super::dial::Dialer;
use super::listen::Router;
use super::place::{self, Charge, Outgoing};
use super::poll::{Parts, Ready, receive};
use super::pool::Pool;
use super::session::{Means, Session, Via};
use super::side::Side;
use super::sockets::{ROOM, Settings};
use super::wire::{CHUNK, INLINE, Kind};
use super::{
    Address, Cause, Command, Inbound, Inner, Message, Options, PeerName, State, TransportError, zap,
};

/// Messages taken from one socket before the others get their turn.
const TURN: usize = 32;
/// How long what a vanished peer has sent may still come out of the sockets.
const GRACE: Duration = Duration::from_millis(150);
/// Time for queued messages to leave at shutdown, milliseconds.
const LINGER_MS: i32 = 2000;

pub(crate) struct Engine {
    pub(crate) inner: Arc<Inner>,
    pub(crate) orders: Receiver<Command>,
    inbound: Sender<Inbound>,
    pub(crate) context: zmq::Context,
    pub(crate) settings: Settings,
    pub(crate) zap: zmq::Socket,
    pub(crate) means: Means,
    pub(crate) routers: Vec<Router>,
    pub(crate) dialers: BTreeMap<PeerName, Dialer>,
    pub(crate) sessions: BTreeMap<u64, Session>,
    pub(crate) current: BTreeMap<PeerName, u64>,
    pub(crate) pools: BTreeMap<u64, Arc<Pool>>,
    pub(crate) shared_limit: BTreeMap<u64, usize>,
    pub(crate) early: BTreeMap<PeerName, Vec<(Message, Charge)>>,
    /// Side sockets that have not named their session yet.
    pub(crate) strangers: VecDeque<(Side, Instant)>,
    pub(crate) next_session: u64,
    pub(crate) generation: u64,
    ticked: Instant,
    beaten: Instant,
    beats: u64,
}

impl Engine {
    /// Binds every address.
    pub(crate) fn new(
        inner: Arc<Inner>,
        orders: Receiver<Command>,
        inbound: Sender<Inbound>,
    ) -> Result<(Self, Vec<Address>), TransportError> {
        let options = &inner.options;
        let limits = &options.limits;
        let settings = Settings {
            heartbeat: options.heartbeat.clone(),
            largest_frame: (limits.header + limits.bodies * (INLINE + 64)).max(CHUNK) + ROOM,
            keys: options.keys.clone(),
            plain_tcp: options.plain_tcp,
        };
        crate::memory::keep();
        let context = zmq::Context::new();
        let generation =
            SystemTime::UNIX_EPOCH.elapsed().map_or(1, |since| since.as_nanos() as u64);
        let started = now();
        let mut engine = Self {
            zap: zap::bind(&context)?,
            means: Means { limits: limits.clone(), buffers: Buffers::new(limits.held) },
            orders,
            inbound,
            context,
            settings,
            routers: Vec::new(),
            dialers: BTreeMap::new(),
            sessions: BTreeMap::new(),
            current: BTreeMap::new(),
            pools: BTreeMap::new(),
            shared_limit: BTreeMap::new(),
            early: BTreeMap::new(),
            strangers: VecDeque::new(),
            next_session: 0,
            generation,
            ticked: started,
            beaten: started,
            beats: 0,
            inner: Arc::clone(&inner),
        };
        for address in &inner.options.bind {
            engine.listen(address)?;
        }
        let addresses = engine.routers.iter().map(|router| router.address.clone()).collect();
        Ok((engine, addresses))
    }

    pub(crate) fn options(&self) -> &Options {
        &self.inner.options
    }

    /// Runs until it is told to stop.
    pub(crate) fn run(mut self) {
        loop {
            loop {
                match self.orders.try_recv() {
                    Ok(Command::Stop) => return self.stop(),
                    Ok(command) => self.obey(command),
                    Err(_) => break,
                }
            }
            let ready = match self.wait() {
                Ok(ready) => ready,
                Err(error) => {
                    tracing::error!(%error, "the transport's poll failed");
                    return self.stop();
                }
            };
            for socket in ready {
                self.serve(socket);
            }
            self.tick();
        }
    }

    pub(crate) fn pause(&self) -> Duration {
        (self.settings.heartbeat.interval / 4)
            .clamp(Duration::from_millis(5), Duration::from_millis(50))
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Connect { peer, address, server } => self.dial(peer, address, server),
            Command::Placed { session, outgoing } => self.transmit(session, outgoing),
            Command::Early { peer, message, charge } => match self.current.get(&peer) {
                Some(&id) => self.send_early(id, &message, charge),
                None if self.dialers.contains_key(&peer) => {
                    self.early.entry(peer).or_default().push((message, charge));
                }
                // It was lost after the call, which has been reported.
                None => {}
            },
            Command::Forget { peer } => self.forget(&peer),
            Command::Stop => {}
        }
    }

    pub(crate) fn send_early(&mut self, id: u64, message: &Message, charge: Charge) {
        let outgoing = place::place(message, self.pools.get(&id), charge);
        self.transmit(id, outgoing);
    }

    /// Runs something with a session and its socket.
    fn with<T>(
        &mut self,
        id: u64,
        run: impl FnOnce(&mut Session, &mut zmq::Socket) -> T,
    ) -> Option<T> {
        let session = self.sessions.get_mut(&id)?;
        let socket = match &session.via {
            Via::Router { index, .. } => &mut self.routers[*index].socket,
            Via::Dialer => &mut self.dialers.get_mut(&session.peer)?.sockets.as_mut()?.0,
        };
        Some(run(session, socket))
    }

    fn transmit(&mut self, id: u64, outgoing: Outgoing) {
        let sent = self.with(id, |session, socket| session.send(socket, outgoing));
        self.check_sent(id, sent);
    }

    fn check_sent(&mut self, id: u64, sent: Option<zmq::Result<()>>) {
        if let Some(Err(error)) = sent {
            tracing::debug!(%error, session = id, "a session's socket is gone");
            self.end_soon(id, Cause::Disconnected);
        }
    }

    fn serve(&mut self, ready: Ready) {
        match ready {
            Ready::Zap => {
                while zap::answer(&self.zap, &self.inner.allowed(), &self.options().known) {}
            }
            Ready::Router(index) => self.serve_router(index),
            Ready::RouterMonitor(index) => {
                while self.routers[index].monitor.recv_multipart(zmq::DONTWAIT).is_ok() {}
                // A dead route answers a heartbeat with an error.
                self.beat();
            }
            Ready::Listener(index) => self.accept_sides(index),
            Ready::Strangers => self.match_sides(),
            Ready::Dialer(peer) => self.serve_dialer(&peer),
            Ready::DialerMonitor(peer) => self.serve_monitor(&peer),
            Ready::Side(id) => self.serve_side(id),
        }
    }

    fn serve_router(&mut self, index: usize) {
        for _ in 0..TURN {
            let Some(mut parts) = receive(&self.routers[index].socket, true) else { return };
            match self.routers[index].routes.get(&parts.identity) {
                Some(&id) => self.take(id, &parts),
                None => {
                    self.on_stranger(index, std::mem::take(&mut parts.identity), &mut parts.frame)
                }
            }
        }
    }

    fn serve_dialer(&mut self, peer: &PeerName) {
        for _ in 0..TURN {
            let Some(dialer) = self.dialers.get(peer) else { return };
            let Some((socket, _)) = &dialer.sockets else { return };
            let session = dialer.session;
            let Some(parts) = receive(socket, false) else { return };
            match session {
                Some(id) => self.take(id, &parts),
                None => self.on_answer(peer, &parts.frame),
            }
        }
    }

    fn serve_side(&mut self, id: u64) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        session.heard = now();
        let read = session.read_side();
        if read == Ok(true) {
            self.end_soon(id, Cause::Disconnected);
        }
        self.stepped(id, read.map(|_| None));
    }

    /// Takes a message that belongs to a session.
    fn take(&mut self, id: u64, parts: &Parts) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        session.heard = now();
        if let (Via::Router { index, .. }, true) =
            (&session.via, session.shares && session.side.is_none())
        {
            let index = *index;
            self.accept_sides(index);
        }
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let step = match parts.extra {
            true => Err(broken("a message has more than two frames")),
            false => session.receive(&parts.frame, parts.piece.as_deref()),
        };
        self.stepped(id, step.map(|bye| bye.then_some(Cause::Closed)));
    }

    /// Reports what a session has completed, and ends it if it has to.
    fn stepped(&mut self, id: u64, step: Result<Option<Cause>, Cause>) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let ready = std::mem::take(&mut session.ready);
        let (peer, via) = (session.peer.clone(), session.via.clone());
        for message in ready {
            self.report(Inbound::Message { peer: peer.clone(), message });
        }
        match step {
            Ok(None) => {}
            Ok(Some(cause)) => self.end(id, cause),
            Err(cause) => {
                tracing::warn!(%peer, %cause, "a session is cut");
                if let Via::Router { index, identity } = via {
                    self.refuse(index, &identity, &cause.to_string());
                }
                self.end(id, cause);
            }
        }
    }

    pub(crate) fn report(&self, inbound: Inbound) {
        // Nobody listens any more: the transport is being dropped.
        let _ = self.inbound.send(inbound);
    }

    /// Ends a session once what it has sent is taken.
    pub(crate) fn end_soon(&mut self, id: u64, why: Cause) {
        if let Some(session) = self.sessions.get_mut(&id) {
            session.ending.get_or_insert((now(), why));
        }
    }

    /// Ends a session and reports it; the connecting side tries again.
    pub(crate) fn end(&mut self, id: u64, why: Cause) {
        let Some(session) = self.sessions.remove(&id) else { return };
        self.pools.remove(&id);
        self.shared_limit.remove(&id);
        let peer = session.peer;
        match session.via {
            Via::Router { index, identity } => {
                self.routers[index].routes.remove(&identity);
            }
            Via::Dialer => self.redial(&peer),
        }
        if self.current.get(&peer) == Some(&id) {
            self.current.remove(&peer);
            self.inner.set_state(&peer, State::Lost { why: why.clone() });
        }
        tracing::debug!(%peer, %why, "session ended");
        self.report(Inbound::Lost { peer, why });
    }

    fn forget(&mut self, peer: &PeerName) {
        self.dialers.remove(peer);
        self.early.remove(peer);
        if let Some(id) = self.current.get(peer).copied() {
            let _ = self.with(id, |session, socket| session.signal(socket, Kind::Bye, 0));
            self.end(id, Cause::Forgotten);
        }
        self.inner.peers.write().unwrap_or_else(std::sync::PoisonError::into_inner).remove(peer);
    }

    fn beat(&mut self) {
        self.beats += 1;
        let beats = self.beats;
        for id in self.sessions.keys().copied().collect::<Vec<_>>() {
            let sent =
                self.with(id, |session, socket| session.signal(socket, Kind::Heartbeat, beats));
            self.check_sent(id, sent);
        }
    }

    fn tick(&mut self) {
        let (time, heartbeat) = (now(), self.settings.heartbeat.clone());
        let gap = time - self.ticked;
        if gap < self.pause() / 2 {
            return;
        }
        self.ticked = time;
        if gap > heartbeat.timeout / 2 {
            // This thread itself did not run: silence proves nothing about the others.
            self.sessions.values_mut().for_each(|session| session.heard = time);
        }
        if time - self.beaten >= heartbeat.interval {
            self.beaten = time;
            self.beat();
        }
        let over = |session: &Session| match &session.ending {
            Some((since, why)) if time - *since > GRACE => Some(why.clone()),
            _ => {
                let silence = time.saturating_duration_since(session.heard);
                (silence > heartbeat.timeout).then_some(Cause::Silent { silence })
            }
        };
        let ended: Vec<_> =
            self.sessions.iter().filter_map(|(id, session)| Some((*id, over(session)?))).collect();
        for (id, why) in ended {
            self.end(id, why);
        }
        self.strangers.retain(|(_, since)| time - *since < Duration::from_secs(3));
        self.dial_again(time);
    }

    /// Says goodbye, lets queued messages leave, and only then closes the side sockets.
    fn stop(mut self) {
        for id in self.sessions.keys().copied().collect::<Vec<_>>() {
            let _ = self.with(id, |session, socket| session.signal(socket, Kind::Bye, 0));
        }
        for socket in self.routers.iter().map(|router| &router.socket) {
            let _ = socket.set_linger(LINGER_MS);
        }
        for (socket, _) in self.dialers.values().filter_map(|dialer| dialer.sockets.as_ref()) {
            let _ = socket.set_linger(LINGER_MS);
        }
        let Self { mut context, zap, routers, dialers, sessions, .. } = self;
        drop((zap, dialers));
        let listeners: Vec<_> = routers.into_iter().map(|router| router.side).collect();
        if let Err(error) = context.destroy() {
            tracing::warn!(%error, "the ZeroMQ context was not closed");
        }
        drop((listeners, sessions));
    }
}
