//! The supervisor's side of all agents: starts them, wires them, notices when one is gone.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command as Program, Stdio};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use schemas::experiment::{HostConfig, TransportConfig};

use crate::agent::{SUPERVISOR, Ticket};
use crate::edge::Directory;
use crate::edges::remote::Remote as RemoteEdge;
use crate::hosts::{HostError, Remote};
use crate::letter::{self, Letter, VERSION};
use crate::message::{Command, Generation};
use crate::node_actor::Reporter;
use crate::transport::{
    Address, Inbound, Keys, Message, Options, PeerName, PublicKey, Transport, TransportError,
};

/// How long an agent may take to come up.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the fleet is started with.
pub struct Setup {
    /// Hosts by name.
    pub hosts: BTreeMap<String, HostConfig>,
    /// Host of each node.
    pub place: BTreeMap<String, String>,
    /// All nodes of the graph.
    pub nodes: Vec<String>,
    /// The program that is an agent when called with `agent --ticket FILE`.
    pub program: PathBuf,
    /// Private folder for sockets and tickets; made with mode 0700.
    pub folder: PathBuf,
    /// Folder with key files, for agents that are started elsewhere.
    pub keys: Option<PathBuf>,
    /// Where events of remote nodes go.
    pub report: Reporter,
    /// Ways of this process.
    pub directory: Directory,
}

struct Agent {
    config: HostConfig,
    keys: Option<Keys>,
    public: Option<PublicKey>,
    child: Option<Child>,
    /// Addresses that it listens at, once it joined.
    addresses: Vec<Address>,
}

/// News from agents, for the supervisor's thread.
enum News {
    Joined { host: String, version: u32, addresses: Vec<Address> },
    Wired { host: String, generation: Generation },
    Lost { host: String, why: String },
}

/// All agents of a run.
pub struct Fleet {
    setup: Setup,
    transport: Arc<Transport>,
    own_keys: Keys,
    token: [u8; 16],
    agents: BTreeMap<String, Agent>,
    news: Receiver<News>,
    /// What was lost since the last call.
    lost: Option<String>,
}

impl Fleet {
    /// Opens the sockets; starts no agent yet.
    pub fn start(setup: Setup) -> Result<Self, TransportError> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&setup.folder)
            .map_err(|error| TransportError::io("make", &setup.folder, error))?;
        let own_keys = own_keys(&setup)?;
        let token = token()?;
        let mut options = Options::new(PeerName::new(SUPERVISOR)?, token);
        options.keys = Some(own_keys.clone());
        options.bind = bind(&setup)?;
        let mut agents = BTreeMap::new();
        for (name, config) in &setup.hosts {
            let (keys, public) = match (&config.listen, &setup.keys) {
                (Some(_), Some(folder)) => {
                    (None, PublicKey::load(&folder.join(format!("{name}.key")))?)
                }
                _ => {
                    let keys = Keys::generate()?;
                    let public = keys.public();
                    (Some(keys), public)
                }
            };
            options.allow.push((public, PeerName::new(name)?));
            agents.insert(
                name.clone(),
                Agent {
                    config: config.clone(),
                    keys,
                    public: Some(public),
                    child: None,
                    addresses: Vec::new(),
                },
            );
        }
        let (transport, inbound) = Transport::start(options)?;
        let transport = Arc::new(transport);
        let (sender, news) = crossbeam_channel::unbounded();
        let pump = Pump { report: setup.report.clone(), directory: setup.directory.clone(), sender };
        std::thread::Builder::new()
            .name("fleet".to_owned())
            .spawn(move || pump.run(&inbound))
            .map_err(|error| TransportError::io("start", "fleet thread", error))?;
        for (node, host) in &setup.place {
            let edge = RemoteEdge { peer: PeerName::new(host)?, transport: transport.clone() };
            setup.directory.set(node, Arc::new(edge));
        }
        Ok(Self { setup, transport, own_keys, token, agents, news, lost: None })
    }

    fn tell(&self, host: &str, letter: &Letter) -> Result<(), HostError> {
        let absent = |reason: String| HostError::Absent { host: host.to_owned(), reason };
        let peer = PeerName::new(host).map_err(|error| absent(error.to_string()))?;
        let message = letter::write(letter).map_err(|error| absent(error.to_string()))?;
        self.transport.send(&peer, message).map_err(|error| absent(error.to_string()))
    }

    /// The supervisor's own address for agents on a transport.
    fn own_address(&self, transport: TransportConfig) -> Option<Address> {
        let wanted = |address: &&Address| {
            matches!(address, Address::Ipc { .. }) == (transport == TransportConfig::Ipc)
        };
        self.transport.addresses().iter().find(wanted).cloned()
    }

    /// Starts an agent as a child process.
    fn launch(&mut self, host: &str) -> Result<(), HostError> {
        let absent = |reason: String| HostError::Absent { host: host.to_owned(), reason };
        let agent = &self.agents[host];
        let tcp = agent.config.transport == TransportConfig::Tcp;
        let supervisor = self
            .own_address(agent.config.transport)
            .ok_or_else(|| absent("no address fits its transport".to_owned()))?;
        let mut listen = Vec::new();
        if !tcp {
            let path = self.setup.folder.join(format!("{host}.sock"));
            listen.push(Address::Ipc { path });
        }
        listen.push(Address::Tcp { host: "127.0.0.1".to_owned(), port: 0 });
        let ticket = Ticket {
            name: host.to_owned(),
            supervisor,
            key: tcp.then(|| self.own_keys.public()),
            token: self.token,
            listen,
        };
        let path = self.setup.folder.join(format!("{host}.ticket"));
        let text = serde_json::to_vec(&ticket).map_err(|error| absent(error.to_string()))?;
        write_private(&path, &text).map_err(|error| absent(error.to_string()))?;
        if let Some(keys) = &agent.keys {
            let secret = self.setup.folder.join(format!("{host}.key_secret"));
            if !secret.exists() {
                keys.save(&self.setup.folder, host).map_err(|error| absent(error.to_string()))?;
            }
        }
        let mut program = Program::new(&self.setup.program);
        program.arg("agent").arg("--ticket").arg(&path).stdin(Stdio::null());
        if let Some(threads) = agent.config.threads {
            program.env("RAYON_NUM_THREADS", threads.to_string());
        }
        // An interrupt from the terminal is for the supervisor alone.
        let child = program.process_group(0).spawn().map_err(|error| absent(error.to_string()))?;
        if let Some(agent) = self.agents.get_mut(host) {
            agent.child = Some(child);
            agent.addresses.clear();
        }
        Ok(())
    }

    /// Waits until every agent has joined.
    fn wait_for_all(&mut self) -> Result<(), HostError> {
        while let Some(late) = self.agents.iter().find(|(_, a)| a.addresses.is_empty()) {
            let host = late.0.clone();
            match self.news.recv_timeout(PATIENCE) {
                Ok(News::Joined { host, version, addresses }) => {
                    if version != VERSION {
                        let reason = format!("it speaks version {version}, this is {VERSION}");
                        return Err(HostError::Absent { host, reason });
                    }
                    if let Some(agent) = self.agents.get_mut(&host) {
                        agent.addresses = addresses;
                    }
                }
                Ok(News::Lost { host, why }) => {
                    return Err(HostError::Absent { host, reason: why });
                }
                Ok(News::Wired { .. }) => {}
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    let reason = format!("it did not join within {} s", PATIENCE.as_secs());
                    return Err(HostError::Absent { host, reason });
                }
            }
        }
        Ok(())
    }

    /// Tells every agent where everyone is, and waits until they know.
    fn wire(&mut self, generation: Generation) -> Result<(), HostError> {
        let names: Vec<String> = self.agents.keys().cloned().collect();
        for (index, name) in names.iter().enumerate() {
            let places = self
                .setup
                .nodes
                .iter()
                .map(|node| {
                    let host = self.setup.place.get(node).cloned();
                    (node.clone(), host.unwrap_or_else(|| SUPERVISOR.to_owned()))
                })
                .filter(|(_, host)| host != name)
                .collect();
            let connect = names[..index].iter().filter_map(|other| {
                Some((other.clone(), (self.address_between(name, other)?, self.agents[other].public)))
            });
            let allow = self.agents.iter().filter(|(other, _)| *other != name);
            let letter = Letter::Wire {
                generation,
                places,
                connect: connect.collect(),
                allow: allow.filter_map(|(other, a)| Some((other.clone(), a.public?))).collect(),
            };
            self.tell(name, &letter)?;
        }
        let mut waiting: BTreeSet<String> = names.into_iter().collect();
        while let Some(host) = waiting.first().cloned() {
            match self.news.recv_timeout(PATIENCE) {
                Ok(News::Wired { host, generation: g }) if g == generation => {
                    waiting.remove(&host);
                }
                Ok(News::Lost { host, why }) => {
                    return Err(HostError::Absent { host, reason: why });
                }
                Ok(_) => {}
                Err(_) => {
                    let reason = "it did not answer".to_owned();
                    return Err(HostError::Absent { host, reason });
                }
            }
        }
        Ok(())
    }

    /// Where one agent reaches another: shared memory when both may use it, else TCP.
    fn address_between(&self, from: &str, to: &str) -> Option<Address> {
        let ipc = |name: &str| self.agents[name].config.transport == TransportConfig::Ipc;
        let near = ipc(from) && ipc(to);
        let addresses = &self.agents[to].addresses;
        addresses.iter().find(|a| matches!(a, Address::Ipc { .. }) == near).cloned()
    }
}

impl Remote for Fleet {
    fn gather(&mut self, generation: Generation) -> Result<(), HostError> {
        self.lost = None;
        while let Ok(news) = self.news.try_recv() {
            if let News::Lost { host, .. } = news
                && let Some(agent) = self.agents.get_mut(&host)
            {
                agent.addresses.clear();
            }
        }
        for host in self.agents.keys().cloned().collect::<Vec<_>>() {
            let Some(agent) = self.agents.get_mut(&host) else { continue };
            let alive = match &mut agent.child {
                Some(child) => matches!(child.try_wait(), Ok(None)),
                None => false,
            };
            let here = agent.config.listen.is_none();
            if here && (!alive || agent.addresses.is_empty()) {
                if let Some(mut child) = agent.child.take() {
                    let _ = child.kill(); // it may be gone already
                    let _ = child.wait();
                }
                self.launch(&host)?;
            }
        }
        self.wait_for_all()?;
        self.wire(generation)
    }

    fn command(&mut self, host: &str, command: Command) {
        let letter = Letter::Command(command);
        if let Err(error) = self.tell(host, &letter) {
            self.lost.get_or_insert_with(|| error.to_string());
        }
    }

    fn lost(&mut self) -> Option<String> {
        for (host, agent) in &mut self.agents {
            let Some(child) = &mut agent.child else { continue };
            if let Ok(Some(status)) = child.try_wait() {
                agent.addresses.clear();
                agent.child = None;
                self.lost.get_or_insert_with(|| format!("the agent on `{host}` ended: {status}"));
            }
        }
        while let Ok(news) = self.news.try_recv() {
            if let News::Lost { host, why } = news {
                if let Some(agent) = self.agents.get_mut(&host) {
                    agent.addresses.clear();
                }
                self.lost.get_or_insert_with(|| format!("the agent on `{host}` is lost: {why}"));
            }
        }
        self.lost.take()
    }

    fn dismiss(&mut self) {
        for host in self.agents.keys() {
            if let Err(error) = self.tell(host, &Letter::Dismiss) {
                tracing::debug!(%error, "an agent could not be dismissed");
            }
        }
        for agent in self.agents.values_mut() {
            if let Some(mut child) = agent.child.take() {
                end(&mut child);
            }
        }
        let _ = fs::remove_dir_all(&self.setup.folder); // only sockets and used tickets
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        for agent in self.agents.values_mut() {
            if let Some(mut child) = agent.child.take() {
                end(&mut child);
            }
        }
    }
}

/// Gives a child two seconds to end by itself.
fn end(child: &mut Child) {
    let (_keep, never) = crossbeam_channel::bounded::<()>(0);
    for _ in 0..40 {
        if !matches!(child.try_wait(), Ok(None)) {
            return;
        }
        let _ = never.recv_timeout(Duration::from_millis(50));
    }
    let _ = child.kill();
    let _ = child.wait();
}

/// Reads what agents send, on a thread of its own.
struct Pump {
    report: Reporter,
    directory: Directory,
    sender: Sender<News>,
}

impl Pump {
    fn run(&self, inbound: &Receiver<Inbound>) {
        for happening in inbound {
            let news = match happening {
                Inbound::Connected { .. } => None,
                Inbound::Lost { peer, why } => {
                    Some(News::Lost { host: peer.to_string(), why: why.to_string() })
                }
                Inbound::Message { peer, message } => self.read(&peer, &message),
            };
            if let Some(news) = news
                && self.sender.send(news).is_err()
            {
                return;
            }
        }
    }

    fn read(&self, peer: &PeerName, message: &Message) -> Option<News> {
        let host = peer.to_string();
        match letter::read(message) {
            Ok(Letter::Join { version, addresses }) => {
                return Some(News::Joined { host, version, addresses });
            }
            Ok(Letter::Wired { generation }) => return Some(News::Wired { host, generation }),
            Ok(Letter::Event(event)) => (self.report)(event),
            Ok(Letter::Parcel(header)) => {
                let parcel = letter::read_parcel(header, message);
                let sent = parcel.map_err(|e| e.to_string()).and_then(|parcel| {
                    self.directory.send(parcel).map_err(|error| error.to_string())
                });
                if let Err(error) = sent {
                    tracing::warn!(%peer, %error, "a parcel is left out");
                }
            }
            Ok(other) => tracing::warn!(%peer, ?other, "a letter is not for a supervisor"),
            Err(error) => tracing::warn!(%peer, %error, "a message is left out"),
        }
        None
    }
}

fn own_keys(setup: &Setup) -> Result<Keys, TransportError> {
    match &setup.keys {
        Some(folder) => Keys::load(&folder.join(format!("{SUPERVISOR}.key_secret"))),
        None => Keys::generate(),
    }
}

fn bind(setup: &Setup) -> Result<Vec<Address>, TransportError> {
    let mut bind = Vec::new();
    let uses = |t: TransportConfig| setup.hosts.values().any(|h| h.transport == t);
    if uses(TransportConfig::Ipc) {
        bind.push(Address::Ipc { path: setup.folder.join("supervisor.sock") });
    }
    let listen: BTreeSet<&String> = setup.hosts.values().filter_map(|h| h.listen.as_ref()).collect();
    for address in listen {
        bind.push(address.parse()?);
    }
    let here = |h: &HostConfig| h.transport == TransportConfig::Tcp && h.listen.is_none();
    if setup.hosts.values().any(here) {
        bind.push(Address::Tcp { host: "127.0.0.1".to_owned(), port: 0 });
    }
    Ok(bind)
}

/// A random secret for processes of one host.
fn token() -> Result<[u8; 16], TransportError> {
    let keys = Keys::generate()?;
    let mut token = [0; 16];
    token.copy_from_slice(&keys.public().bytes()[..16]);
    Ok(token)
}

fn write_private(path: &Path, text: &[u8]) -> std::io::Result<()> {
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(text)
}
