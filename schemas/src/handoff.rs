//! From one stage to the next: where every parameter comes from.
//!
//! A parameter is taken over as it is, by a rule, or starts fresh because the stage says so; one of the earlier
//! stage that nobody takes is dropped because the stage says so. Anything else is refused before the run.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::diagnostic::{Code, Diagnostic, Report};
use crate::entry::{Parameter, find};
use crate::experiment::{Experiment, StageConfig};
use crate::glob::fits;
use crate::graph::{StageGraph, StageNode, Surroundings};
use crate::node::covers;
use crate::yaml::{Located, Tree};

/// What a node begins a stage with.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Takeover {
    /// The node of the earlier stage whose state it takes; its own name when absent.
    pub of: Option<String>,
    /// Prefixes of parameters that start fresh; an empty one is all of them.
    pub fresh: Vec<String>,
    /// Rules by parameter.
    pub rules: BTreeMap<String, Value>,
    /// Prefixes of parameters of the earlier stage that are left behind.
    pub dropped: Vec<String>,
    /// Whether the optimiser's moments go on.
    pub moments: bool,
}

impl Takeover {
    /// Whether nothing is taken.
    pub fn is_fresh(&self) -> bool {
        self.fresh.iter().any(String::is_empty)
    }

    /// Whether a parameter starts fresh.
    pub fn starts_fresh(&self, path: &str) -> bool {
        self.fresh.iter().any(|prefix| covers(prefix, path))
    }
}

/// Something that is not handed over, because the experiment says so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiver {
    /// Stage that begins.
    pub stage: String,
    /// `fresh` or `drop`.
    pub what: String,
    /// Node.
    pub node: String,
    /// Parameters.
    pub parameters: Vec<String>,
}

/// Parameters of a node at the end of a stage.
#[derive(Debug, Clone)]
struct Held {
    stage: String,
    parameters: Vec<Parameter>,
}

/// All there is at the end of a stage, by node.
type Store = BTreeMap<String, Held>;

/// Settles what every node of every stage begins with; reports what nobody gives and what nobody takes.
pub(crate) fn settle(
    tree: &Located,
    experiment: &Experiment,
    stages: &mut [StageGraph],
    around: &Surroundings,
    report: &mut Report,
) -> Vec<Waiver> {
    let mut stores: Vec<Store> = Vec::new();
    let mut waivers = Vec::new();
    for index in 0..stages.len() {
        let (before, rest) = stages.split_at_mut(index);
        let stage = &mut rest[0];
        let number = experiment.curriculum.iter().position(|config| config.name == stage.name);
        let Some((number, config)) = number.map(|at| (at, &experiment.curriculum[at])) else {
            continue;
        };
        let followers = stage.edges.iter().filter(|edge| edge.is_weights());
        let followers = followers.map(|edge| edge.to.node.clone()).collect();
        let mut settling =
            Settling { tree, config, number, around, followers, report, waivers: &mut waivers };
        stage.from = settling.from(before);
        let base = stage.from.or(index.checked_sub(1));
        let store = base.and_then(|at| stores.get(at));
        for (name, node) in &mut stage.nodes {
            settling.node(name, node, store);
        }
        settling.unused(&stage.nodes);
        let mut after = index.checked_sub(1).and_then(|at| stores.get(at).cloned());
        let after_stage = after.get_or_insert_default();
        after_stage.extend(store.cloned().unwrap_or_default());
        for (name, node) in stage.nodes.iter().filter(|(_, node)| node.same.is_none()) {
            let parameters = parameters(node, around);
            after_stage.insert(name.clone(), Held { stage: stage.name.clone(), parameters });
        }
        stores.push(after.unwrap_or_default());
    }
    waivers
}

fn parameters(node: &StageNode, around: &Surroundings) -> Vec<Parameter> {
    find(around.registry, &node.spec.kind)
        .map_or_else(Vec::new, |entry| (entry.parameters)(&node.spec))
}

/// One stage on its way.
struct Settling<'a> {
    tree: &'a Located,
    config: &'a StageConfig,
    number: usize,
    around: &'a Surroundings,
    /// Nodes that begin as the copy of another one.
    followers: BTreeSet<String>,
    report: &'a mut Report,
    waivers: &'a mut Vec<Waiver>,
}

/// The part of `name.rest` behind a node, when it is about this node.
fn within<'a>(path: &'a str, node: &str) -> Option<&'a str> {
    let rest = path.strip_prefix(node)?;
    if rest.is_empty() { Some("") } else { rest.strip_prefix('.') }
}

impl Settling<'_> {
    fn refuse(&mut self, key: &str, message: String, hint: String) {
        let path = format!("curriculum.{}{key}", self.number);
        let problem = Diagnostic::new(Code::HandOff, &self.tree.place_of(&path), path, message);
        self.report.add(problem.hint(hint));
    }

    /// Number of the stage that this one begins with.
    fn from(&mut self, before: &[StageGraph]) -> Option<usize> {
        let name = self.config.from.as_ref()?;
        let found = before.iter().position(|stage| stage.name == *name);
        if found.is_none() {
            let names: Vec<&str> = before.iter().map(|stage| stage.name.as_str()).collect();
            let hint = match names.as_slice() {
                [] => "leave `from` out of the first stage".to_owned(),
                names => format!("earlier stages are {}", crate::reading::quoted(names)),
            };
            self.refuse(".from", format!("no earlier stage is named `{name}`"), hint);
        }
        found
    }

    fn waive(&mut self, what: &str, node: &str, parameters: Vec<String>) {
        let (stage, what) = (self.config.name.clone(), what.to_owned());
        self.waivers.push(Waiver { stage, what, node: node.to_owned(), parameters });
    }

    /// Prefixes of a list of the stage that are about a node.
    fn prefixes(list: &[String], node: &str) -> Vec<String> {
        list.iter().filter_map(|path| within(path, node)).map(str::to_owned).collect()
    }

    fn node(&mut self, name: &str, node: &mut StageNode, store: Option<&Store>) {
        let list = parameters(node, self.around);
        let of = self.config.takes.get(name).cloned();
        let takeover = Takeover {
            fresh: Self::prefixes(&self.config.fresh, name),
            moments: self.config.moments.keeps(name),
            rules: BTreeMap::new(),
            dropped: Self::prefixes(&self.config.drop, of.as_deref().unwrap_or(name)),
            of: of.clone(),
        };
        node.takeover = takeover;
        // The first stage draws everything; a vertex has the weights of another node.
        let (Some(store), None) = (store, &node.same) else { return };
        let fresh: Vec<String> = list
            .iter()
            .filter(|p| node.takeover.starts_fresh(&p.path))
            .map(|p| p.path.clone())
            .collect();
        if !fresh.is_empty() {
            self.waive("fresh", name, fresh);
        }
        if list.is_empty() || node.takeover.is_fresh() {
            return;
        }
        match store.get(of.as_deref().unwrap_or(name)) {
            Some(held) => self.match_all(name, node, &list, held),
            None => self.newcomer(name, node, (&list, of.as_deref())),
        }
    }

    /// A node that no earlier stage had.
    fn newcomer(&mut self, name: &str, node: &StageNode, (list, of): (&[Parameter], Option<&str>)) {
        if let Some(of) = of {
            let hint = "name a node that worked in an earlier stage".to_owned();
            let message = format!("`{name}` takes over from `{of}`, which had no parameters yet");
            return self.refuse(&format!(".takes.{name}"), message, hint);
        }
        if node.spec.weights.is_some() || self.followers.contains(name) {
            return;
        }
        let left: Vec<String> = list
            .iter()
            .filter(|p| !node.takeover.starts_fresh(&p.path))
            .map(|p| p.path.clone())
            .collect();
        if !left.is_empty() {
            let message = format!(
                "`{name}` is new in stage `{}` and nothing gives its parameters: {}",
                self.config.name,
                some(&left)
            );
            let hint = format!(
                "write `fresh: [{name}]`, or give it `weights`, or say under `takes` whose parameters it takes"
            );
            self.refuse("", message, hint);
        }
    }

    /// A node that an earlier stage had, or that takes over from one.
    fn match_all(&mut self, name: &str, node: &mut StageNode, list: &[Parameter], held: &Held) {
        let mut old: BTreeMap<&str, &Parameter> =
            held.parameters.iter().map(|p| (p.path.as_str(), p)).collect();
        let mut unmatched = Vec::new();
        for parameter in list {
            let path = parameter.path.as_str();
            let before = old.remove(path);
            if node.takeover.starts_fresh(path) {
                continue;
            }
            let full = format!("{name}.{path}");
            let rule = self.config.rules.iter().find(|(pattern, _)| fits(pattern, &full));
            let shape = before.map(|before| before.shape.clone());
            let given = match (rule, shape) {
                (Some((key, rule)), Some(shape)) => match (self.around.rule)(rule, &shape) {
                    Ok(made) => {
                        node.takeover.rules.insert(path.to_owned(), rule.clone());
                        Some(made)
                    }
                    Err(why) => {
                        let message = format!("the rule does not fit `{full}` {shape:?}: {why}");
                        let hint = "`playhouse weights import --help` lists the rules".to_owned();
                        self.refuse(&format!(".rules.{key}"), message, hint);
                        continue;
                    }
                },
                (_, shape) => shape,
            };
            if given.as_ref() != Some(&parameter.shape) {
                unmatched.push(match given {
                    Some(given) => format!("{path} {:?}, there {given:?}", parameter.shape),
                    None => format!("{path} {:?}", parameter.shape),
                });
            }
        }
        let stage = self.config.name.clone();
        if !unmatched.is_empty() {
            let message = format!(
                "stage `{}` does not give parameters of `{name}` that stage `{stage}` needs: {}",
                held.stage,
                some(&unmatched)
            );
            let hint = format!(
                "write `fresh: [{name}]` or name the parts that start anew (`{name}.part`), give a rule under `rules`, or keep the options of `{name}`"
            );
            let key = self.own_change(name);
            self.refuse(&key, message, hint);
        }
        self.match_old(
            name,
            (list, &node.takeover.dropped),
            (&held.stage, old.into_keys().collect()),
        );
    }

    /// Parameters of the earlier stage that the node does not have any more.
    fn match_old(
        &mut self,
        name: &str,
        (list, dropped): (&[Parameter], &[String]),
        (stage, old): (&str, Vec<&str>),
    ) {
        let from = self.config.takes.get(name).map_or(name, String::as_str).to_owned();
        let (gone, kept): (Vec<&str>, Vec<&str>) =
            old.into_iter().partition(|path| dropped.iter().any(|prefix| covers(prefix, path)));
        if !gone.is_empty() {
            self.waive("drop", &from, gone.into_iter().map(str::to_owned).collect());
        }
        if kept.is_empty() {
            return;
        }
        // The shortest names that cover nothing which is kept.
        let mut parts: Vec<String> = Vec::new();
        for path in &kept {
            let ends = path.match_indices('.').map(|(end, _)| end).chain([path.len()]);
            let free = |end: &usize| !list.iter().any(|p| covers(&path[..*end], &p.path));
            let part = ends.into_iter().find(free).map_or(*path, |end| &path[..end]);
            let part = format!("{from}.{part}");
            if !parts.contains(&part) {
                parts.push(part);
            }
        }
        let kept: Vec<String> = kept.into_iter().map(str::to_owned).collect();
        let message =
            format!("nobody takes over parameters of `{from}` of stage `{stage}`: {}", some(&kept));
        let hint = format!(
            "write `drop: [{}]`, or `fresh: [{name}]` to start it anew, or keep its options",
            parts.join(", ")
        );
        let key = self.own_change(name);
        self.refuse(&key, message, hint);
    }

    /// Where the stage changes a node.
    fn own_change(&self, name: &str) -> String {
        let with = self.tree.find(&format!("curriculum.{}.with", self.number));
        let with = with.map_or(&[][..], Located::entries);
        let own = with.iter().find(|(key, _)| key.split('.').next() == Some(name));
        own.map_or_else(String::new, |(key, _)| format!(".with.{key}"))
    }

    /// Entries of the lists that are about nothing.
    fn unused(&mut self, nodes: &BTreeMap<String, StageNode>) {
        for (index, entry) in self.config.fresh.iter().enumerate() {
            let Some((name, part)) = entry.split_once('.') else { continue };
            let Some(node) = nodes.get(name) else { continue };
            let list = parameters(node, self.around);
            if !list.iter().any(|p| covers(part, &p.path)) {
                let message = format!("no parameter of `{name}` is under `{part}`");
                let hint = format!(
                    "`playhouse plan` and `playhouse explain {}` show names",
                    node.spec.kind
                );
                self.refuse(&format!(".fresh.{index}"), message, hint);
            }
        }
        if self.number == 0 && self.config.from.is_none() {
            for key in ["takes", "drop", "rules"] {
                let path = format!("curriculum.0.{key}");
                let written = self.tree.find(&path).is_some_and(|v| !matches!(v.tree, Tree::Null));
                if written {
                    let message =
                        format!("`{key}` is about an earlier stage, and this is the first");
                    self.refuse(&format!(".{key}"), message, "leave it out".to_owned());
                }
            }
        }
    }
}

/// The first of many names, and how many there are.
fn some(names: &[String]) -> String {
    const SHOWN: usize = 12;
    let shown: Vec<String> = names.iter().take(SHOWN).map(|name| format!("`{name}`")).collect();
    match names.len().checked_sub(SHOWN).filter(|more| *more > 0) {
        Some(more) => format!("{} and {more} more", shown.join(", ")),
        None => shown.join(", "),
    }
}
