//! Walks the parameters of a module by path, whatever their rank.
//!
//! A path joins the field names with dots, as PyTorch does: `blocks.0.attn.qkv.weight`.

use std::collections::BTreeMap;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::tensor::{Gradients, Tensor};
pub use schemas::entry::Parameter;

use crate::tensors::AnyTensor;

/// Where a walk is.
#[derive(Debug, Default)]
struct Trail {
    names: Vec<String>,
    containers: Vec<String>,
}

impl Trail {
    fn enter(&mut self, name: &str, container: &str) {
        self.names.push(name.to_owned());
        self.containers.push(container.to_owned());
    }

    fn leave(&mut self) {
        self.names.pop();
        self.containers.pop();
    }

    fn path(&self) -> String {
        self.names.join(".")
    }

    fn linear(&self) -> bool {
        let is = |container: &str, names: &[&str]| {
            self.containers.last().is_some_and(|c| c == container)
                && self.names.last().is_some_and(|n| names.contains(&n.as_str()))
        };
        is("Struct:Linear", &["weight"]) || is("Struct:Adapter", &["a", "b"])
    }
}

struct Visit<F> {
    trail: Trail,
    each: F,
}

/// Something done with each float parameter.
trait OnParam {
    fn on<const D: usize>(&mut self, trail: &Trail, param: &Param<Tensor<D>>);
}

impl<F: OnParam> ModuleVisitor for Visit<F> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.trail.enter(name, container);
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.trail.leave();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.each.on(&self.trail, param);
    }
}

struct List(Vec<Parameter>);

impl OnParam for List {
    fn on<const D: usize>(&mut self, trail: &Trail, param: &Param<Tensor<D>>) {
        let shape = param.lazy_shape().to_vec();
        self.0.push(Parameter { path: trail.path(), shape, linear: trail.linear() });
    }
}

/// All parameters, in the order of the fields; makes none.
pub fn list<M: Module>(module: &M) -> Vec<Parameter> {
    let mut visit = Visit { trail: Trail::default(), each: List(Vec::new()) };
    module.visit(&mut visit);
    visit.each.0
}

struct Ids(Vec<(ParamId, String)>);

impl OnParam for Ids {
    fn on<const D: usize>(&mut self, trail: &Trail, param: &Param<Tensor<D>>) {
        self.0.push((param.id, trail.path()));
    }
}

/// Identity and path of each parameter; makes none.
pub fn ids<M: Module>(module: &M) -> Vec<(ParamId, String)> {
    let mut visit = Visit { trail: Trail::default(), each: Ids(Vec::new()) };
    module.visit(&mut visit);
    visit.each.0
}

/// Number of parameters; makes none.
pub fn count<M: Module>(module: &M) -> u64 {
    list(module).iter().map(|p| p.shape.iter().product::<usize>() as u64).sum()
}

struct Values(BTreeMap<String, AnyTensor>);

impl OnParam for Values {
    fn on<const D: usize>(&mut self, trail: &Trail, param: &Param<Tensor<D>>) {
        self.0.insert(trail.path(), AnyTensor::float(param.val().inner()));
    }
}

/// Values of all parameters, without autodiff. Makes those that are not made yet.
pub fn values<M: Module>(module: &M) -> BTreeMap<String, AnyTensor> {
    let mut visit = Visit { trail: Trail::default(), each: Values(BTreeMap::new()) };
    module.visit(&mut visit);
    visit.each.0
}

struct Take<'a>(&'a mut Gradients, BTreeMap<String, AnyTensor>);

impl OnParam for Take<'_> {
    fn on<const D: usize>(&mut self, trail: &Trail, param: &Param<Tensor<D>>) {
        if let Some(gradient) = param.val().grad_remove(self.0) {
            self.1.insert(trail.path(), AnyTensor::float(gradient.inner()));
        }
    }
}

/// Takes the gradients of all parameters that have one.
pub fn gradients<M: Module>(module: &M, from: &mut Gradients) -> BTreeMap<String, AnyTensor> {
    let mut visit = Visit { trail: Trail::default(), each: Take(from, BTreeMap::new()) };
    module.visit(&mut visit);
    visit.each.1
}

struct Map<'a> {
    trail: Trail,
    change: &'a mut dyn FnMut(&Parameter, AnyTensor) -> AnyTensor,
}

impl ModuleMapper for Map<'_> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.trail.enter(name, container);
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.trail.leave();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let path = self.trail.path();
        let shape = param.lazy_shape().to_vec();
        let info = Parameter { path, shape, linear: self.trail.linear() };
        param.map(|old| {
            let (autodiff, tracked) = (old.is_autodiff(), old.is_require_grad());
            let new = (self.change)(&info, AnyTensor::float(old.inner())).into_float::<D>();
            let new = if autodiff { new.autodiff() } else { new };
            if tracked { new.require_grad() } else { new }
        })
    }
}

/// Replaces the value of each parameter; what trains and what does not stays.
pub fn map<M: Module>(module: M, change: &mut dyn FnMut(&Parameter, AnyTensor) -> AnyTensor) -> M {
    module.map(&mut Map { trail: Trail::default(), change })
}

struct Load<'a> {
    trail: Trail,
    find: &'a mut dyn FnMut(&Parameter) -> Option<AnyTensor>,
}

impl ModuleMapper for Load<'_> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.trail.enter(name, container);
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.trail.leave();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let (path, shape) = (self.trail.path(), param.lazy_shape().to_vec());
        match (self.find)(&Parameter { path, shape, linear: self.trail.linear() }) {
            Some(found) => {
                let (id, found) = (param.id, found.into_float::<D>());
                let autodiff = param.lazy_device().is_autodiff();
                param.transform_for_load(if autodiff { found.autodiff() } else { found }, id)
            }
            None => param,
        }
    }
}

/// Gives parameters the values that are found; their own are not drawn first. What trains and what
/// does not stays.
pub fn load<M: Module>(module: M, find: &mut dyn FnMut(&Parameter) -> Option<AnyTensor>) -> M {
    module.map(&mut Load { trail: Trail::default(), find })
}

struct Activate<'a> {
    trail: Trail,
    trains: &'a dyn Fn(&str) -> bool,
}

impl ModuleMapper for Activate<'_> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.trail.enter(name, container);
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.trail.leave();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let trains = (self.trains)(&self.trail.path());
        param.set_require_grad(trains)
    }
}

/// Says which parameters keep gradients.
pub fn activate<M: Module>(module: M, trains: &dyn Fn(&str) -> bool) -> M {
    module.map(&mut Activate { trail: Trail::default(), trains })
}
