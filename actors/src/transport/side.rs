//! The side socket: a unix socket beside each ipc address over which segments are handed to a peer.
//!
//! It keeps packet boundaries. The first packet names the session (token and nonce); every later one announces
//! a segment and carries its two descriptors. Its end also tells at once that the peer's process is gone.

use std::io::{self, ErrorKind};
use std::mem::{MaybeUninit, zeroed};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::ptr;

/// Bytes of the first packet: magic, run token, nonce.
pub(crate) const OPENING: usize = 8 + 16 + 16;
/// Bytes of a segment's announcement: number, length.
pub(crate) const ANNOUNCEMENT: usize = 4 + 8;
const MAGIC: &[u8; 8] = b"PLAYSIDE";

/// The side socket's path for an ipc path.
pub(crate) fn path(ipc: &Path) -> PathBuf {
    let mut path = ipc.as_os_str().to_owned();
    path.push(".side");
    path.into()
}

/// The first packet of a session.
pub(crate) fn opening(token: &[u8; 16], nonce: &[u8; 16]) -> [u8; OPENING] {
    let mut packet = [0; OPENING];
    packet[..8].copy_from_slice(MAGIC);
    packet[8..24].copy_from_slice(token);
    packet[24..].copy_from_slice(nonce);
    packet
}

/// Splits a first packet into token and nonce.
pub(crate) fn opened(packet: &[u8]) -> Option<([u8; 16], [u8; 16])> {
    let packet: &[u8; OPENING] = packet.try_into().ok()?;
    let (magic, rest) = packet.split_at(8);
    let (token, nonce) = rest.split_at(16);
    (magic == MAGIC).then_some(())?;
    Some((token.try_into().ok()?, nonce.try_into().ok()?))
}

/// What came over a side socket.
pub(crate) enum Received {
    /// A packet of this many bytes with these descriptors.
    Packet(usize, Vec<OwnedFd>),
    /// Nothing now.
    Nothing,
    /// The other end is closed.
    Ended,
}

/// An open side socket, never blocking.
pub(crate) struct Side(OwnedFd);

/// A side socket that accepts.
pub(crate) struct Listener {
    socket: OwnedFd,
    path: PathBuf,
}

fn check(code: libc::c_int) -> io::Result<libc::c_int> {
    if code < 0 { Err(io::Error::last_os_error()) } else { Ok(code) }
}

fn socket() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: no memory is passed; the descriptor is new and owned by nobody else.
    unsafe { Ok(OwnedFd::from_raw_fd(check(libc::socket(libc::AF_UNIX, kind, 0))?)) }
}

fn name(path: &Path) -> io::Result<(libc::sockaddr_un, libc::socklen_t)> {
    // SAFETY: all zeros are a valid sockaddr_un.
    let mut name: libc::sockaddr_un = unsafe { zeroed() };
    name.sun_family = libc::AF_UNIX as libc::sa_family_t;
    let bytes = path.as_os_str().as_bytes();
    if bytes.len() >= name.sun_path.len() {
        return Err(io::Error::new(
            ErrorKind::InvalidInput,
            "the path is too long for a unix socket",
        ));
    }
    for (to, from) in name.sun_path.iter_mut().zip(bytes) {
        *to = *from as libc::c_char;
    }
    Ok((name, size_of::<libc::sockaddr_un>() as libc::socklen_t))
}

impl Listener {
    pub(crate) fn bind(path: &Path) -> io::Result<Self> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let socket = socket()?;
        let (name, len) = name(path)?;
        // SAFETY: the name is a whole sockaddr_un of `len` bytes that outlives the calls.
        unsafe {
            check(libc::bind(socket.as_raw_fd(), (&raw const name).cast(), len))?;
            check(libc::listen(socket.as_raw_fd(), 128))?;
        }
        Ok(Self { socket, path: path.into() })
    }

    /// The next process of the same user that waits; others are closed.
    pub(crate) fn accept(&self) -> Option<Side> {
        loop {
            let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
            // SAFETY: the address of the peer is not asked for.
            let fd = unsafe {
                libc::accept4(self.socket.as_raw_fd(), ptr::null_mut(), ptr::null_mut(), flags)
            };
            if fd < 0 {
                if io::Error::last_os_error().kind() == ErrorKind::Interrupted {
                    continue;
                }
                return None;
            }
            // SAFETY: the descriptor is new and owned by nobody else.
            let side = Side(unsafe { OwnedFd::from_raw_fd(fd) });
            if side.same_user() {
                return Some(side);
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl AsRawFd for Side {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Side {
    pub(crate) fn connect(path: &Path) -> io::Result<Self> {
        let socket = socket()?;
        let (name, len) = name(path)?;
        // SAFETY: the name is a whole sockaddr_un of `len` bytes that outlives the call.
        check(unsafe { libc::connect(socket.as_raw_fd(), (&raw const name).cast(), len) })?;
        let side = Self(socket);
        if side.same_user() { Ok(side) } else { Err(ErrorKind::PermissionDenied.into()) }
    }

    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    fn same_user(&self) -> bool {
        let mut peer = libc::ucred { pid: 0, uid: libc::uid_t::MAX, gid: 0 };
        let mut len = size_of::<libc::ucred>() as libc::socklen_t;
        let fd = self.as_raw_fd();
        // SAFETY: `peer` has room for the `len` bytes that SO_PEERCRED writes.
        let code = unsafe {
            libc::getsockopt(
                fd,
                libc::SOL_SOCKET,
                libc::SO_PEERCRED,
                (&raw mut peer).cast(),
                &raw mut len,
            )
        };
        // SAFETY: takes and touches nothing.
        code == 0 && peer.uid == unsafe { libc::geteuid() }
    }

    /// Sends one packet with its descriptors, whole or not at all.
    pub(crate) fn send(&self, packet: &[u8], files: &[OwnedFd]) -> io::Result<()> {
        let fds: Vec<RawFd> = files.iter().map(AsRawFd::as_raw_fd).collect();
        let size = size_of_val(fds.as_slice());
        let mut control = [0u64; 8];
        let mut part =
            libc::iovec { iov_base: packet.as_ptr().cast_mut().cast(), iov_len: packet.len() };
        // SAFETY: all zeros are a valid msghdr. `control` is aligned for cmsghdr and holds CMSG_SPACE of two
        // descriptors (asserted); every pointer outlives the call.
        let sent = unsafe {
            let mut message: libc::msghdr = zeroed();
            message.msg_iov = &raw mut part;
            message.msg_iovlen = 1;
            if !fds.is_empty() {
                let space = libc::CMSG_SPACE(size as u32) as usize;
                assert!(space <= size_of_val(&control), "a packet carries at most two descriptors");
                message.msg_control = control.as_mut_ptr().cast();
                message.msg_controllen = space as _;
                let first = libc::CMSG_FIRSTHDR(&raw const message);
                (*first).cmsg_level = libc::SOL_SOCKET;
                (*first).cmsg_type = libc::SCM_RIGHTS;
                (*first).cmsg_len = libc::CMSG_LEN(size as u32) as _;
                ptr::copy_nonoverlapping(fds.as_ptr().cast::<u8>(), libc::CMSG_DATA(first), size);
            }
            libc::sendmsg(
                self.as_raw_fd(),
                &raw const message,
                libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT,
            )
        };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Receives the next packet; descriptors that came with it are owned, so that none leaks.
    pub(crate) fn receive(&self, buffer: &mut [u8]) -> Received {
        let mut control = [0u64; 16];
        let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        // SAFETY: all zeros are a valid msghdr; the pointers have room for the lengths given and outlive the call.
        let (message, received) = unsafe {
            let mut message: libc::msghdr = zeroed();
            message.msg_iov = &raw mut part;
            message.msg_iovlen = 1;
            message.msg_control = control.as_mut_ptr().cast();
            message.msg_controllen = size_of_val(&control) as _;
            let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
            let received = libc::recvmsg(self.as_raw_fd(), &raw mut message, flags);
            (message, received)
        };
        match received {
            0 => Received::Ended,
            // SAFETY: recvmsg has just filled `message`, whose control buffer is still alive.
            1.. => Received::Packet(received as usize, unsafe { descriptors(&message) }),
            _ => match io::Error::last_os_error().kind() {
                ErrorKind::WouldBlock | ErrorKind::Interrupted => Received::Nothing,
                _ => Received::Ended,
            },
        }
    }
}

/// Takes the descriptors out of a received control buffer.
///
/// # Safety
/// `message` was filled by a successful `recvmsg`, its control buffer is alive, and this is the only call for it.
unsafe fn descriptors(message: &libc::msghdr) -> Vec<OwnedFd> {
    let mut files = Vec::new();
    // SAFETY: the CMSG macros walk the control buffer within the length that the kernel has set; each
    // descriptor in it is open and owned by nobody else yet.
    unsafe {
        let mut next = libc::CMSG_FIRSTHDR(message);
        while !next.is_null() {
            if (*next).cmsg_level == libc::SOL_SOCKET && (*next).cmsg_type == libc::SCM_RIGHTS {
                let bytes = ((*next).cmsg_len as usize).saturating_sub(libc::CMSG_LEN(0) as usize);
                for index in 0..bytes / size_of::<RawFd>() {
                    let mut fd = MaybeUninit::<RawFd>::uninit();
                    let from = libc::CMSG_DATA(next).add(index * size_of::<RawFd>());
                    ptr::copy_nonoverlapping(
                        from,
                        fd.as_mut_ptr().cast::<u8>(),
                        size_of::<RawFd>(),
                    );
                    files.push(OwnedFd::from_raw_fd(fd.assume_init()));
                }
            }
            next = libc::CMSG_NXTHDR(message, next);
        }
    }
    files
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;

    use super::*;

    #[test]
    fn a_packet_arrives_whole_with_its_descriptors() {
        let directory = tempfile::tempdir().unwrap();
        let path = path(&directory.path().join("a"));
        let listener = Listener::bind(&path).unwrap();
        let here = Side::connect(&path).unwrap();
        let there = listener.accept().unwrap();
        let (mut reader, writer) = std::io::pipe().unwrap();
        here.send(&opening(&[1; 16], &[2; 16]), &[]).unwrap();
        here.send(b"segment", &[writer.into()]).unwrap();
        let mut buffer = [0; 64];
        let Received::Packet(len, files) = there.receive(&mut buffer) else { panic!("no packet") };
        assert_eq!((opened(&buffer[..len]), files.len()), (Some(([1; 16], [2; 16])), 0));
        let Received::Packet(len, mut files) = there.receive(&mut buffer) else {
            panic!("no packet")
        };
        assert_eq!(&buffer[..len], b"segment");
        std::io::Write::write_all(&mut File::from(files.remove(0)), b"x").unwrap();
        let mut byte = [0];
        reader.read_exact(&mut byte).unwrap();
        assert!(matches!(there.receive(&mut buffer), Received::Nothing));
        drop(here);
        assert!(matches!(there.receive(&mut buffer), Received::Ended));
    }
}
