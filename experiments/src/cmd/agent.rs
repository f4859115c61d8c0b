use std::{fs, io};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use actors::agent::{self, AgentError, SUPERVISOR, Ticket};
use actors::node_actor::Factory;
use actors::transport::{Address, Keys, PublicKey};
use anyhow::{Context as _, bail};

/// Work as an agent: make nodes for a supervisor on another process or machine
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Address of the supervisor, for example `tcp://10.0.0.1:5555`
    #[arg(long, requires = "keys", requires = "name", conflicts_with = "ticket")]
    connect: Option<Address>,
    /// Folder with `<name>.key_secret` and `supervisor.key`, as `playhouse keys` makes them
    #[arg(long, value_name = "DIR")]
    keys: Option<PathBuf>,
    /// Name of this host in the experiment
    #[arg(long)]
    name: Option<String>,
    /// Address to listen at for other agents
    #[arg(long, default_value = "tcp://0.0.0.0:0")]
    listen: Address,
    /// Ticket file, written by a supervisor on this machine
    #[arg(long, value_name = "FILE")]
    ticket: Option<PathBuf>,
}

/// Serves until the supervisor dismisses this agent.
pub(crate) fn run(args: &Args, factory: &Factory) -> anyhow::Result<ExitCode> {
    let (ticket, keys) = match (&args.ticket, &args.connect, &args.keys, &args.name) {
        (Some(path), ..) => {
            let ticket = agent::read_ticket(path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            let secret = path.with_extension("key_secret");
            let keys = if secret.exists() { Some(Keys::load(&secret)?) } else { None };
            for used_up in [path, &secret] {
                let _ = fs::remove_file(used_up);
            }
            end_with_parent(path.parent().map(Path::to_owned));
            (ticket, keys)
        }
        (None, Some(address), Some(folder), Some(name)) => {
            let keys = Keys::load(&folder.join(format!("{name}.key_secret")))?;
            let key = PublicKey::load(&folder.join(format!("{SUPERVISOR}.key")))?;
            let ticket = Ticket {
                name: name.clone(),
                supervisor: address.clone(),
                key: Some(key),
                token: [0; 16],
                listen: vec![args.listen.clone()],
            };
            (ticket, Some(keys))
        }
        _ => bail!("an agent needs `--connect`, `--keys` and `--name`"),
    };
    match agent::run(&ticket, keys, factory.clone()) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error @ (AgentError::Lost { .. } | AgentError::NoSupervisor { .. })) => {
            eprintln!("error: {error}");
            Ok(ExitCode::FAILURE)
        }
        Err(error) => Err(error.into()),
    }
}

/// Ends this process when the one that started it does, however it ends: the other side of this
/// process's input is held by nobody else. Sockets that are left behind are removed.
fn end_with_parent(folder: Option<PathBuf>) {
    let wait = move || {
        let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
        if let Some(folder) = folder {
            let _ = fs::remove_dir_all(folder); // another agent may be faster
        }
        eprintln!("error: the supervisor's process is gone");
        #[expect(clippy::disallowed_methods, reason = "nobody is left to work for")]
        std::process::exit(1);
    };
    let thread = std::thread::Builder::new().name("parent".to_owned());
    if let Err(error) = thread.spawn(wait) {
        tracing::warn!(%error, "cannot watch the supervisor's process");
    }
}
