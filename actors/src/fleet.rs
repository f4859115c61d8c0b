//! The supervisor's side of all agents: starts them, wires them, notices when one is gone.

mod news;
mod private;
mod waiting;
mod wiring;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command as Program, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use crossbeam_channel::Receiver;
use news::{News, Pump};
use private::{known_keys, own_keys, private_folder, random, write_private};
use schemas::experiment::{HostConfig, TransportConfig};

use crate::agent::{PARAMETERS, SUPERVISOR, Ticket};
use crate::clock::{Clock as _, Moment, RealClock};
use crate::edge::Directory;
use crate::hosts::{HostError, Remote};
use crate::letter::{self, Letter};
use crate::message::{Command, Generation};
use crate::node_actor::Reporter;
use crate::transport::{Address, Keys, Options, PeerName, PublicKey, Transport, TransportError};

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
    /// Where the private folder for sockets and tickets is made.
    pub folder: PathBuf,
    /// Folder with key files, for agents that are started elsewhere.
    pub keys: Option<PathBuf>,
    /// Set when the run shall end, also while this waits for agents.
    pub stop: Arc<AtomicBool>,
    /// Where events of remote nodes go.
    pub report: Reporter,
    /// Ways of this process.
    pub directory: Directory,
}

struct Agent {
    config: HostConfig,
    /// Name of its process: the host's, with a number for every process that was started here.
    process: String,
    launches: u32,
    public: Option<PublicKey>,
    child: Option<Child>,
    /// Addresses that it listens at, once it joined.
    addresses: Vec<Address>,
    /// Whether it has ever joined.
    came: bool,
}

impl Agent {
    fn joined(&mut self, addresses: Vec<Address>) {
        (self.addresses, self.came) = (addresses, true);
    }
}

/// All agents of a run.
pub struct Fleet {
    setup: Setup,
    transport: Arc<Transport>,
    own_keys: Keys,
    token: [u8; 16],
    agents: BTreeMap<String, Agent>,
    news: Receiver<News>,
    clock: RealClock,
    /// When people are next told for whom this waits.
    notice: Moment,
    generation: Generation,
    /// What was lost since the last call.
    lost: Option<String>,
}

impl Fleet {
    /// Opens the sockets; starts no agent yet.
    pub fn start(mut setup: Setup) -> Result<Self, TransportError> {
        let token = random()?;
        setup.folder = private_folder(&setup.folder)?;
        let own_keys = own_keys(setup.keys.as_deref())?;
        let mut options = Options::new(PeerName::new(SUPERVISOR)?, token);
        options.limits.bodies = PARAMETERS;
        options.keys = Some(own_keys.clone());
        options.bind = bind(&setup)?;
        options.known = setup.keys.as_deref().map(known_keys).unwrap_or_default();
        let mut agents = BTreeMap::new();
        for (name, config) in &setup.hosts {
            let mut public = None;
            if let (Some(_), Some(folder)) = (&config.listen, &setup.keys) {
                let key = PublicKey::load(&folder.join(format!("{name}.key")))?;
                options.allow.push((key, PeerName::new(name)?));
                public = Some(key);
            }
            let (config, process) = (config.clone(), name.clone());
            let (child, addresses, came) = (None, Vec::new(), false);
            let agent = Agent { config, process, launches: 0, public, child, addresses, came };
            agents.insert(name.clone(), agent);
        }
        let (transport, inbound) = Transport::start(options)?;
        let transport = Arc::new(transport);
        let (sender, news) = crossbeam_channel::unbounded();
        let pump =
            Pump { report: setup.report.clone(), directory: setup.directory.clone(), sender };
        std::thread::Builder::new()
            .name("fleet".to_owned())
            .spawn(move || pump.run(&inbound))
            .map_err(|error| TransportError::io("start", "fleet thread", error))?;
        let clock = RealClock::start();
        let (notice, generation, lost) = (clock.now(), 0, None);
        Ok(Self {
            setup,
            transport,
            own_keys,
            token,
            agents,
            news,
            clock,
            notice,
            generation,
            lost,
        })
    }

    fn tell(&self, host: &str, letter: &Letter) -> Result<(), HostError> {
        let absent = |reason: String| HostError::Absent { host: host.to_owned(), reason };
        let process = &self.agents[host].process;
        let peer = PeerName::new(process).map_err(|error| absent(error.to_string()))?;
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

    /// Starts an agent as a child process, with a name and keys of its own, so that nothing that
    /// is still heard of the one before is taken for it.
    fn launch(&mut self, host: &str) -> Result<(), HostError> {
        let failed = |error: &dyn std::fmt::Display| HostError::Absent {
            host: host.to_owned(),
            reason: error.to_string(),
        };
        let transport = self.agents[host].config.transport;
        let supervisor =
            self.own_address(transport).ok_or_else(|| failed(&"no address fits its transport"))?;
        let Some(agent) = self.agents.get_mut(host) else { return Ok(()) };
        if agent.launches > 0 {
            let old = PeerName::new(&agent.process).map_err(|error| failed(&error))?;
            self.transport.forget(&old).map_err(|error| failed(&error))?;
        }
        agent.launches += 1;
        agent.process = format!("{host}.{}", agent.launches);
        agent.addresses.clear();
        let keys = Keys::generate().map_err(|error| failed(&error))?;
        agent.public = Some(keys.public());
        let name = PeerName::new(&agent.process).map_err(|error| failed(&error))?;
        self.transport.allow(keys.public(), name);
        let tcp = transport == TransportConfig::Tcp;
        let mut listen = Vec::new();
        if !tcp {
            let path = self.setup.folder.join(format!("{}.sock", agent.process));
            listen.push(Address::Ipc { path });
        }
        listen.push(Address::Tcp { host: "127.0.0.1".to_owned(), port: 0 });
        let ticket = Ticket {
            name: agent.process.clone(),
            supervisor,
            key: tcp.then(|| self.own_keys.public()),
            token: self.token,
            listen,
        };
        let path = self.setup.folder.join(format!("{}.ticket", agent.process));
        let text = serde_json::to_vec(&ticket).map_err(|error| failed(&error))?;
        write_private(&path, &text).map_err(|error| failed(&error))?;
        keys.save(&self.setup.folder, &agent.process).map_err(|error| failed(&error))?;
        let mut program = Program::new(&self.setup.program);
        // The agent ends when its input does, which is when this process ends, however it ends.
        program.arg("agent").arg("--ticket").arg(&path).stdin(Stdio::piped());
        if let Some(threads) = agent.config.threads {
            program.env("RAYON_NUM_THREADS", threads.to_string());
            program.env("OMP_NUM_THREADS", threads.to_string());
        }
        // An interrupt from the terminal is for the supervisor alone.
        agent.child = Some(program.process_group(0).spawn().map_err(|error| failed(&error))?);
        Ok(())
    }

    fn host_of(&self, process: &str) -> Option<String> {
        let mut agents = self.agents.iter();
        agents.find(|(_, agent)| agent.process == process).map(|(host, _)| host.clone())
    }

    fn forget_addresses(&mut self, host: &str) {
        if let Some(agent) = self.agents.get_mut(host) {
            agent.addresses.clear();
        }
    }

    /// A child that has ended by itself.
    fn ended(&mut self) -> Option<(String, ExitStatus)> {
        for (host, agent) in &mut self.agents {
            let Some(child) = &mut agent.child else { continue };
            if let Ok(Some(status)) = child.try_wait() {
                agent.addresses.clear();
                agent.child = None;
                return Some((host.clone(), status));
            }
        }
        None
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
        self.generation = generation;
        let _ = self.lost(); // what is lost is made again here
        for host in self.agents.keys().cloned().collect::<Vec<_>>() {
            let Some(agent) = self.agents.get_mut(&host) else { continue };
            let here = agent.config.listen.is_none();
            if here && (agent.child.is_none() || agent.addresses.is_empty()) {
                if let Some(mut child) = agent.child.take() {
                    let _ = child.kill(); // it may be gone already
                    let _ = child.wait();
                }
                self.launch(&host)?;
            }
        }
        self.wait_for_all()?;
        self.own_ways()?;
        self.wire(generation)
    }

    fn command(&mut self, host: &str, command: Command) {
        let letter = Letter::Command(command);
        if let Err(error) = self.tell(host, &letter) {
            self.lost.get_or_insert_with(|| error.to_string());
        }
    }

    fn lost(&mut self) -> Option<String> {
        let mut causes = Vec::new();
        while let Some((host, status)) = self.ended() {
            causes.push(format!("the agent on `{host}` ended: {status}"));
        }
        while let Ok(news) = self.news.try_recv() {
            let Some(host) = self.host_of(news.process()) else { continue };
            match news {
                News::Lost { why, .. } => {
                    self.forget_addresses(&host);
                    causes.push(format!("the agent on `{host}` is lost: {why}"));
                }
                News::Cut { generation, peer, why, .. } if generation == self.generation => {
                    causes.push(format!("the agent on `{host}` lost its way to `{peer}`: {why}"));
                }
                // An agent that was started elsewhere came back before it was missed.
                News::Joined { addresses, .. } => {
                    if let Some(agent) = self.agents.get_mut(&host) {
                        agent.joined(addresses);
                    }
                }
                News::Cut { .. } | News::Open { .. } | News::Wired { .. } => {}
            }
        }
        causes.extend(self.lost.take());
        causes.into_iter().next()
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

fn bind(setup: &Setup) -> Result<Vec<Address>, TransportError> {
    let mut bind = Vec::new();
    let uses = |t: TransportConfig| setup.hosts.values().any(|h| h.transport == t);
    if uses(TransportConfig::Ipc) {
        bind.push(Address::Ipc { path: setup.folder.join("supervisor.sock") });
    }
    let listen: BTreeSet<&String> =
        setup.hosts.values().filter_map(|h| h.listen.as_ref()).collect();
    for address in listen {
        bind.push(address.parse()?);
    }
    let here = |h: &HostConfig| h.transport == TransportConfig::Tcp && h.listen.is_none();
    if setup.hosts.values().any(here) {
        bind.push(Address::Tcp { host: "127.0.0.1".to_owned(), port: 0 });
    }
    Ok(bind)
}
