//! `adamw_cosine`: a trajectory of AdamW with clipping, and tables of learning rates.

use std::path::Path;

use burn::module::Module;
use burn::tensor::Tensor;
use modules::archive::Archive;
use modules::init::Init;
use modules::layers::linear::Linear;
use modules::layout::Layout;
use modules::optimizer::{AdamW, Rates};
use modules::tensors::AnyTensor;
use modules::{parameters, weights};
use schemas::node::{Optimizer, Part, Schedule};
use serde_json::json;

use super::fixture::{Array, Arrays, Fixture};
use super::network::autodiff;
use super::report::Report;

/// `fc2(tanh(fc1(x)))`.
#[derive(Module, Debug)]
struct Net {
    fc1: Linear,
    fc2: Linear,
}

impl Net {
    fn load(fixture: &Fixture) -> Self {
        let [inputs, hidden, outputs] = ["din", "dh", "dout"].map(|field| fixture.count(field));
        let init = Init::new(0, "golden", &autodiff());
        let net = Self {
            fc1: init.linear(inputs, hidden, true, 1.0),
            fc2: init.linear(hidden, outputs, true, 1.0),
        };
        let archive = Archive::open(&fixture.folder.join("model.safetensors"));
        let archive = archive.unwrap_or_else(|error| panic!("{error}"));
        weights::load(&archive, net, &[Layout::new("paths")])
            .unwrap_or_else(|error| panic!("{error}"))
            .0
    }

    /// Mean squared error over the rows of `x` and `y`.
    fn loss(&self, x: Tensor<2>, y: Tensor<2>) -> Tensor<1> {
        let error = self.fc2.forward(self.fc1.forward(x).tanh()) - y;
        (error.clone() * error).mean()
    }
}

/// In the layout of the file.
fn stored(path: &str, tensor: AnyTensor) -> Array {
    match tensor {
        AnyTensor::F2(matrix) if path.ends_with("weight") => Array::of(matrix.transpose()),
        AnyTensor::F1(vector) => Array::of(vector),
        other => panic!("{path} is {:?}", other.shape()),
    }
}

fn config(fixture: &Fixture) -> Optimizer {
    serde_json::from_value(json!({
        "lr": fixture.number("lr"),
        "betas": fixture.config["betas"],
        "eps": fixture.number("eps"),
        "weight_decay": fixture.number("weight_decay"),
        "min_lr": fixture.number("eta_min"),
        "schedule": "cosine",
        "layer_decay": fixture.number("layer_decay"),
    }))
    .expect("the options are right")
}

/// Checks the fixture.
pub fn check(folder: &Path) -> Report {
    let fixture = Fixture::open(folder);
    let inputs = fixture.arrays("inputs.safetensors");
    let mut report = Report::new(&fixture, fixture.arrays("expected.safetensors"));
    check_schedules(&mut report, &fixture);
    check_accumulation(&mut report, &fixture, &inputs);
    let mut net = Net::load(&fixture);
    let mut optimizer = AdamW::new(&config(&fixture));
    let mut step = 0;
    while report.expects(&format!("step.{step}.loss")) {
        net = check_step(&mut report, &fixture, &inputs, (net, &mut optimizer, step));
        step += 1;
    }
    report.finish()
}

fn check_step(
    report: &mut Report,
    fixture: &Fixture,
    inputs: &Arrays,
    (net, optimizer, step): (Net, &mut AdamW, usize),
) -> Net {
    let name = |what: &str| format!("step.{step}.{what}");
    let device = autodiff();
    let loss = net.loss(inputs["x"].float(&device), inputs["y"].float(&device));
    report.meet(&name("loss"), &Array::of(loss.clone()));
    let gradients = parameters::gradients(&net, &mut loss.backward());
    let norm = gradients.values().map(AnyTensor::squared_norm).sum::<f64>().sqrt();
    let one = |value: f64| Array { shape: vec![1], values: vec![value] };
    report.meet(&name("grad_norm"), &one(norm));
    let scale = (fixture.number("max_norm") / (norm + 1e-6)).min(1.0);
    let lr = report.take(&name("lr")).values[0];
    let bias_lr = lr * fixture.number("bias_lr_scale");
    report.meet(&name("lr_bias"), &one(bias_lr));
    let net = parameters::map(net, &mut |parameter, value| {
        let path = &parameter.path;
        let gradient = gradients[path].clone().times(scale);
        report.meet(&name(&format!("grad.{path}")), &stored(path, gradient.clone()));
        let decays = path.ends_with("weight");
        let rates = Rates { lr: if decays { lr } else { bias_lr }, decays };
        let new = optimizer.step(path, value, gradient, rates);
        report.meet(&name(&format!("param.{path}")), &stored(path, new.clone()));
        new
    });
    let mut part = Part::default();
    optimizer.save(&mut part);
    for (key, moment) in [("first", "exp_avg"), ("second", "exp_avg_sq")] {
        for path in gradients.keys() {
            let frame = &part.tensors[&format!("adamw.{key}.{path}")];
            let tensor = AnyTensor::from_frame(frame, &device.clone().inner());
            let tensor = tensor.unwrap_or_else(|error| panic!("{error}"));
            report.meet(&name(&format!("{moment}.{path}")), &stored(path, tensor));
        }
    }
    net
}

/// Gradients of four equal parts of the batch, or of as many as divide it, summed.
fn check_accumulation(report: &mut Report, fixture: &Fixture, inputs: &Arrays) {
    let (net, device) = (Net::load(fixture), autodiff());
    let (x, y) = (inputs["x"].float::<2>(&device), inputs["y"].float::<2>(&device));
    let rows = x.dims()[0];
    let parts = (1..=4).rev().find(|parts| rows.is_multiple_of(*parts)).unwrap_or(1);
    let mut sums = std::collections::BTreeMap::<String, AnyTensor>::new();
    for (x, y) in x.chunk(parts, 0).into_iter().zip(y.chunk(parts, 0)) {
        let loss = net.loss(x, y).div_scalar(parts as f64);
        for (path, gradient) in parameters::gradients(&net, &mut loss.backward()) {
            let sum = match sums.remove(&path) {
                Some(sum) => sum.plus(gradient),
                None => gradient,
            };
            sums.insert(path, sum);
        }
    }
    for (path, sum) in sums {
        report.meet(&format!("micro.grad.{path}"), &stored(&path, sum));
    }
}

fn check_schedules(report: &mut Report, fixture: &Fixture) {
    let base = config(fixture);
    let length = |report: &Report, name: &str| report.length(&format!("schedule.{name}"));
    let table = |report: &mut Report, name: &str, lr: &dyn Fn(u64) -> f64| {
        let values = (0..length(report, name) as u64).map(lr).collect::<Vec<_>>();
        report.meet(&format!("schedule.{name}"), &Array { shape: vec![values.len()], values });
    };
    let total = fixture.count("total_steps") as u64;
    table(report, "torch_cosine_annealing", &|step| base.lr_at(step, total));
    // The first step of this table has rate 0 and the peak comes after the warm-up steps; both
    // ends of the line are points of ours.
    let warmup = fixture.count("warmup_steps") as u64;
    let line = Optimizer { warmup: warmup + 1, schedule: Schedule::Constant, ..base.clone() };
    let cosine = Optimizer { min_lr: 0.0, ..base.clone() };
    table(report, "hf_cosine_warmup", &|step| match step.checked_sub(warmup) {
        Some(after) => cosine.lr_at(after, total - warmup),
        None => line.lr_at(step, total),
    });
    // Start and length of this warm-up are read from the table: the cosine begins with the peak.
    let given = report.values("schedule.videomae_cosine");
    let peak = given.iter().rposition(|v| (v - base.lr).abs() < 1e-6 * base.lr);
    let warm =
        Optimizer { warmup: peak.map_or(0, |p| p as u64), warmup_lr: given[0], ..base.clone() };
    let steps = given.len() as u64;
    table(report, "videomae_cosine", &|step| warm.lr_at(step, steps));
    let blocks = fixture.count("num_layers");
    table(report, "layer_decay", &|layer| base.layer_factor(layer as usize, blocks));
}
