//! ZeroMQ sockets: their options, and the raw calls that the `zmq` crate does not offer.

use std::ffi::{c_int, c_void};
use std::time::Duration;

use bytes::Bytes;

use super::{Address, Heartbeat, Keys, PublicKey, TransportError};

/// Bounds each attempt of a handshake, milliseconds.
const HANDSHAKE_MS: i32 = 3000;
/// `ZMQ_ZAP_ENFORCE_DOMAIN`, which the bindings do not name.
const ENFORCE_DOMAIN: c_int = 93;
/// The ZAP domain of every tcp socket.
pub(crate) const DOMAIN: &str = "playhouse";
/// Largest frame: the first frame of a data message, or a chunk.
pub(crate) const ROOM: usize = 64 << 10;

/// What all sockets of a transport share.
pub(crate) struct Settings {
    pub(crate) heartbeat: Heartbeat,
    pub(crate) largest_frame: usize,
    pub(crate) keys: Option<Keys>,
    pub(crate) plain_tcp: bool,
}

impl Settings {
    fn common(&self, socket: &zmq::Socket) -> zmq::Result<()> {
        let millis = |duration: Duration| i32::try_from(duration.as_millis()).unwrap_or(i32::MAX);
        socket.set_linger(0)?;
        // Callers bound what is in flight and `Limits::queued` accounts for it: nothing may be dropped here.
        socket.set_sndhwm(0)?;
        socket.set_rcvhwm(64)?;
        socket.set_maxmsgsize(i64::try_from(self.largest_frame).unwrap_or(i64::MAX))?;
        socket.set_handshake_ivl(HANDSHAKE_MS)?;
        socket.set_heartbeat_ivl(millis(self.heartbeat.interval))?;
        socket.set_heartbeat_timeout(millis(self.heartbeat.timeout))?;
        socket.set_heartbeat_ttl(millis(self.heartbeat.timeout))?;
        socket.set_reconnect_ivl(20)?;
        socket.set_reconnect_ivl_max(500)
    }

    fn encrypted(&self, address: &Address) -> Result<Option<&Keys>, TransportError> {
        match (address, &self.keys) {
            (Address::Ipc { .. }, _) => Ok(None),
            (Address::Tcp { .. }, _) if self.plain_tcp => Ok(None),
            (Address::Tcp { .. }, Some(keys)) => Ok(Some(keys)),
            (Address::Tcp { .. }, None) => {
                Err(TransportError::KeysMissing { address: address.clone() })
            }
        }
    }

    /// A ROUTER that listens.
    pub(crate) fn listen(
        &self,
        context: &zmq::Context,
        address: &Address,
    ) -> Result<zmq::Socket, TransportError> {
        let failed =
            |source| TransportError::Zmq { doing: format!("listen at `{address}`"), source };
        let keys = self.encrypted(address)?;
        let mut socket = context.socket(zmq::ROUTER).map_err(failed)?;
        self.common(&socket).map_err(failed)?;
        socket.set_router_mandatory(true).map_err(failed)?;
        socket.set_router_handover(true).map_err(failed)?;
        if let Some(keys) = keys {
            socket.set_curve_server(true).map_err(failed)?;
            socket.set_curve_secretkey(keys.secret()).map_err(failed)?;
            socket.set_zap_domain(DOMAIN).map_err(failed)?;
            // Without it an unknown key is admitted whenever no ZAP handler answers.
            set(&mut socket, ENFORCE_DOMAIN, 1).map_err(failed)?;
        }
        if let Address::Tcp { host, .. } = address {
            socket.set_ipv6(host.contains(':')).map_err(failed)?;
        }
        socket.bind(&address.to_string()).map_err(failed)?;
        Ok(socket)
    }

    /// A DEALER that connects.
    pub(crate) fn dial(
        &self,
        context: &zmq::Context,
        address: &Address,
        server: Option<PublicKey>,
    ) -> Result<zmq::Socket, TransportError> {
        let failed =
            |source| TransportError::Zmq { doing: format!("connect to `{address}`"), source };
        let keys = self.encrypted(address)?;
        let socket = context.socket(zmq::DEALER).map_err(failed)?;
        self.common(&socket).map_err(failed)?;
        if let Some(keys) = keys {
            let server =
                server.ok_or_else(|| TransportError::KeysMissing { address: address.clone() })?;
            socket.set_curve_serverkey(&server.0).map_err(failed)?;
            socket.set_curve_publickey(&keys.public().0).map_err(failed)?;
            socket.set_curve_secretkey(keys.secret()).map_err(failed)?;
        }
        if let Address::Tcp { host, .. } = address {
            socket.set_ipv6(host.contains(':')).map_err(failed)?;
        }
        Ok(socket)
    }
}

fn set(socket: &mut zmq::Socket, option: c_int, value: c_int) -> zmq::Result<()> {
    // SAFETY: the socket is open, and the value is an int that outlives the call, as these options want.
    let code = unsafe {
        let value = (&raw const value).cast::<c_void>();
        zmq_sys::zmq_setsockopt(socket.as_mut_ptr(), option, value, size_of::<c_int>())
    };
    if code == 0 { Ok(()) } else { Err(last_error()) }
}

fn last_error() -> zmq::Error {
    // SAFETY: reads the thread's error number.
    zmq::Error::from_raw(unsafe { zmq_sys::zmq_errno() })
}

/// Called by libzmq when it has written a frame, on whichever thread that was.
unsafe extern "C" fn written(_data: *mut c_void, hint: *mut c_void) {
    // SAFETY: `hint` is the box that `send_shared` leaked, and libzmq calls this once.
    drop(unsafe { Box::from_raw(hint.cast::<Shared>()) });
}

struct Shared {
    _body: Bytes,
    _guard: Box<dyn Send>,
}

/// Sends the bytes as one frame without a copy; `guard` is dropped with them when libzmq has written them.
pub(crate) fn send_shared(
    socket: &mut zmq::Socket,
    body: Bytes,
    guard: Box<dyn Send>,
    flags: c_int,
) -> zmq::Result<()> {
    let (data, len) = (body.as_ptr().cast_mut().cast::<c_void>(), body.len());
    let hint = Box::into_raw(Box::new(Shared { _body: body, _guard: guard })).cast::<c_void>();
    let mut message = zmq_sys::zmq_msg_t::default();
    // SAFETY: the bytes live in the box until `written` frees it, and libzmq only reads them. After a failed
    // send the message is still ours and closing it calls `written`.
    unsafe {
        if zmq_sys::zmq_msg_init_data(&mut message, data, len, Some(written), hint) != 0 {
            drop(Box::from_raw(hint.cast::<Shared>()));
            return Err(last_error());
        }
        if zmq_sys::zmq_msg_send(&mut message, socket.as_mut_ptr(), flags) < 0 {
            let error = last_error();
            zmq_sys::zmq_msg_close(&mut message);
            return Err(error);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn libzmq_has_curve() {
        assert_eq!(zmq::has("curve"), Some(true));
        assert_eq!(zmq::version(), (4, 3, 5));
    }
}
