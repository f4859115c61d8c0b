//! A new generation: every agent joins, learns where everyone is, and reaches the others.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::Fleet;
use super::news::News;
use crate::agent::SUPERVISOR;
use crate::edges::remote::Remote as RemoteEdge;
use crate::hosts::HostError;
use crate::letter::{Letter, VERSION};
use crate::message::Generation;
use crate::transport::PeerName;

impl Fleet {
    /// Waits until every agent has joined.
    pub(super) fn wait_for_all(&mut self) -> Result<(), HostError> {
        let deadline = self.deadline();
        self.remind_later();
        loop {
            let late = self.agents.iter().find(|(_, a)| a.addresses.is_empty());
            let Some(late) = late.map(|(host, _)| host.clone()) else { return Ok(()) };
            let News::Joined { process, version, addresses } = self.next_news(&late, deadline)?
            else {
                continue;
            };
            let Some(host) = self.host_of(&process) else { continue };
            if version != VERSION {
                let reason = format!("it speaks version {version}, this is {VERSION}");
                return Err(HostError::Absent { host, reason });
            }
            if let Some(agent) = self.agents.get_mut(&host) {
                agent.joined(addresses);
            }
        }
    }

    /// Tells every agent where everyone is, and waits until they have reached each other. Keys
    /// are admitted everywhere before anyone connects.
    pub(super) fn wire(&mut self, generation: Generation) -> Result<(), HostError> {
        let names: Vec<String> = self.agents.keys().cloned().collect();
        for name in &names {
            let place = |node: &String| {
                let host = self.setup.place.get(node);
                let process = host.map_or(SUPERVISOR, |host| &self.agents[host].process);
                (node.clone(), process.to_owned())
            };
            let nodes = self.setup.nodes.iter();
            let elsewhere = nodes.filter(|node| self.setup.place.get(*node) != Some(name));
            let places = elsewhere.map(place).collect();
            let allow = self.agents.iter().filter(|(other, _)| *other != name);
            let allow = allow.filter_map(|(_, a)| Some((a.process.clone(), a.public?))).collect();
            self.tell(name, &Letter::Wire { generation, places, allow })?;
        }
        self.wait_until_all(
            |news| matches!(news, News::Open { generation: g, .. } if *g == generation),
        )?;
        for (index, name) in names.iter().enumerate() {
            let to = names[..index].iter().filter_map(|other| {
                let there = &self.agents[other];
                Some((there.process.clone(), (self.address_between(name, other)?, there.public)))
            });
            let to = to.collect();
            self.tell(name, &Letter::Connect { to })?;
        }
        self.wait_until_all(
            |news| matches!(news, News::Wired { generation: g, .. } if *g == generation),
        )
    }

    /// Waits for the same news of every agent.
    fn wait_until_all(&mut self, wanted: impl Fn(&News) -> bool) -> Result<(), HostError> {
        let deadline = self.deadline();
        let mut waiting: BTreeSet<String> = self.agents.keys().cloned().collect();
        while let Some(late) = waiting.first().cloned() {
            let news = self.next_news(&late, deadline)?;
            if wanted(&news)
                && let Some(host) = self.host_of(news.process())
            {
                waiting.remove(&host);
            }
        }
        Ok(())
    }

    /// Ways of this process to all nodes elsewhere.
    pub(super) fn own_ways(&self) -> Result<(), HostError> {
        for (node, host) in &self.setup.place {
            let peer = PeerName::new(&self.agents[host].process).map_err(|error| {
                HostError::Absent { host: host.clone(), reason: error.to_string() }
            })?;
            let edge = RemoteEdge { peer, transport: self.transport.clone() };
            self.setup.directory.set(node, Arc::new(edge));
        }
        Ok(())
    }
}
