//! Waiting for any socket, and taking messages out of them.

use std::os::fd::AsRawFd;

use super::PeerName;
use super::engine::Engine;

/// Which socket is ready.
pub(crate) enum Ready {
    Zap,
    Router(usize),
    RouterMonitor(usize),
    Listener(usize),
    Dialer(PeerName),
    DialerMonitor(PeerName),
    Side(u64),
    Strangers,
}

/// The frames of one received ZeroMQ message.
pub(crate) struct Parts {
    /// What a listening socket calls the connection; empty at others.
    pub(crate) identity: Vec<u8>,
    pub(crate) frame: zmq::Message,
    pub(crate) piece: Option<zmq::Message>,
    /// There were more frames.
    pub(crate) extra: bool,
}

/// The next message of a socket, if there is one.
pub(crate) fn receive(socket: &zmq::Socket, routed: bool) -> Option<Parts> {
    let mut next = socket.recv_msg(zmq::DONTWAIT).ok()?;
    let mut more = next.get_more();
    let mut identity = Vec::new();
    if routed {
        identity = next.to_vec();
        next = if more { socket.recv_msg(zmq::DONTWAIT).ok()? } else { zmq::Message::new() };
        more = next.get_more();
    }
    let mut parts = Parts { identity, frame: next, piece: None, extra: false };
    while more {
        let part = socket.recv_msg(zmq::DONTWAIT).ok()?;
        more = part.get_more();
        parts.extra |= parts.piece.is_some();
        parts.piece = Some(part);
    }
    Some(parts)
}

impl Engine {
    /// Sleeps until a socket is ready, a caller has an order, or it is time to look at the clock.
    pub(crate) fn wait(&self) -> zmq::Result<Vec<Ready>> {
        let fd = |fd: &dyn AsRawFd| zmq::PollItem::from_fd(fd.as_raw_fd(), zmq::POLLIN);
        let mut items = vec![fd(&self.inner.wake), self.zap.as_poll_item(zmq::POLLIN)];
        let mut tokens = vec![None, Some(Ready::Zap)];
        let mut add = |item, token| {
            items.push(item);
            tokens.push(Some(token));
        };
        for (index, router) in self.routers.iter().enumerate() {
            add(router.socket.as_poll_item(zmq::POLLIN), Ready::Router(index));
            add(router.monitor.as_poll_item(zmq::POLLIN), Ready::RouterMonitor(index));
            if let Some(listener) = &router.side {
                add(fd(listener), Ready::Listener(index));
            }
        }
        for (peer, dialer) in &self.dialers {
            if let Some((connected, monitor)) = &dialer.sockets {
                add(connected.as_poll_item(zmq::POLLIN), Ready::Dialer(peer.clone()));
                add(monitor.as_poll_item(zmq::POLLIN), Ready::DialerMonitor(peer.clone()));
            }
        }
        for (id, session) in &self.sessions {
            if let Some(side) = &session.side {
                add(fd(side), Ready::Side(*id));
            }
        }
        for (side, _) in &self.strangers {
            add(fd(side), Ready::Strangers);
        }
        self.inner.wake.sleeping();
        let timeout = if self.orders.is_empty() { self.pause().as_millis() as i64 } else { 0 };
        let polled = zmq::poll(&mut items, timeout);
        self.inner.wake.awake();
        if let Err(error) = polled
            && error != zmq::Error::EINTR
        {
            return Err(error);
        }
        let ready = items.iter().map(|item| !item.get_revents().is_empty());
        Ok(ready.zip(tokens).filter_map(|(ready, token)| token.filter(|_| ready)).collect())
    }
}
