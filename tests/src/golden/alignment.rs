//! `internvideo2_pretrain`: the masked student with its three alignment losses.

use std::path::Path;

use burn::tensor::{Gradients, Int, Tensor};
use modules::layers::block::taps;
use modules::layers::norm::unit;
use modules::layers::positions;
use modules::losses::feature_alignment;
use modules::models::internvideo2;
use modules::tensors::Tensors;
use schemas::dims::Dims;
use serde_json::json;

use super::fixture::{Array, Arrays, Fixture};
use super::internvideo2::{check_inside, lattice, options};
use super::network::{Network, autodiff, check_coverage, check_gradients, dims, port};
use super::report::Report;

type Student = Network<internvideo2::Config>;
type Alignment = Network<feature_alignment::Config>;

/// Indices of visible patches from a mask with a column for the class token; true is hidden.
pub fn visible(mask: &Array) -> Array {
    mask.places(0.0, 1)
}

struct Setting {
    fixture: Fixture,
    inputs: Arrays,
    visible: Array,
    lattice: [usize; 3],
}

impl Setting {
    fn student(&self, gelu: &str) -> Student {
        let [b, _, t, h, w] = self.inputs["video"].shape[..] else { panic!("five dims") };
        let v = self.visible.shape[1];
        let sizes = dims([("B", b), ("T", t), ("H", h), ("W", w), ("V", v)]);
        Network::load(&self.fixture, "model.safetensors", options(&self.fixture, gelu), &sizes)
    }

    fn sizes(&self, teacher: &Array) -> Dims {
        let [t, h, w] = self.lattice;
        let v = self.visible.shape[1];
        let [l, b, m, e] = teacher.shape[..] else { panic!("four dims") };
        let (k, d) = (self.fixture.count("depth"), self.fixture.count("embed_dim"));
        let student = [("K", k), ("S", 1 + v), ("D", d), ("V", v), ("B", b)];
        let mut sizes = dims(student);
        sizes.extend(dims([("L", l), ("M", m), ("E", e), ("t", t), ("h", h), ("w", w)]));
        sizes
    }

    fn tokens(&self, group: &str, head: &str) -> Alignment {
        let teacher =
            &self.inputs[if group == "mae" { "target_mae" } else { "target_clip_middle" }];
        let options = json!({
            "group": group,
            "head": head,
            "last": self.fixture.count(&format!("{group}_return_layer")),
            "interval": self.fixture.number(&format!("{group}_student_return_interval")),
            "separable": self.fixture.flag("sep_pos_embed"),
        });
        Network::load(&self.fixture, "model.safetensors", options, &self.sizes(teacher))
    }

    fn pooled(&self) -> Alignment {
        let width = self.fixture.count("clip_embed_dim");
        let teacher = self.inputs["target_clip_final"].shape[1];
        let options = json!({ "of": "pooled" });
        let sizes = dims([("B", 1), ("D", width), ("E", teacher)]);
        Network::load(&self.fixture, "model.safetensors", options, &sizes)
    }

    fn visible(&self) -> Tensor<2, Int> {
        self.visible.int(&autodiff().inner())
    }

    fn run(&self, student: &Student, video: &Tensor<5>) -> (Tensor<4>, Tensor<2>) {
        let inputs = Tensors::of("video", video.clone()).with("visible", self.visible());
        let mut outputs = student.forward(inputs);
        (port(&mut outputs, "layers"), port(&mut outputs, "pooled"))
    }
}

/// Checks the fixture.
pub fn check(folder: &Path) -> Report {
    let fixture = Fixture::open(folder);
    let inputs = fixture.arrays("inputs.safetensors");
    let mut report = Report::new(&fixture, fixture.arrays("expected.safetensors"));
    let lattice = lattice(&fixture, &inputs["video"]);
    let at = Setting { visible: visible(&inputs["mask"]), fixture, inputs, lattice };
    let parts = [at.tokens("clip", "linear"), at.tokens("mae", "mlp"), at.pooled()];
    let student = at.student("gelu");
    let mut taken = vec![&student.taken];
    taken.extend(parts.iter().map(|part| &part.taken));
    check_coverage(&mut report, &at.fixture, "model.safetensors", &taken);

    let video = at.inputs["video"].float::<5>(&autodiff()).require_grad();
    let (layers, pooled) = at.run(&student, &video);
    check_projections(&mut report, "", &at, &parts, (&layers, &pooled));
    let mut all = check_losses(&mut report, &at, &parts, (layers, pooled));
    let gradient = video.grad(&all).expect("the video has a gradient");
    report.meet("grad_input.video", &Array::of(gradient));
    let mut gradients = student.gradients(&mut all);
    parts.iter().for_each(|part| gradients.extend(part.gradients(&mut all)));
    check_gradients(&mut report, &at.fixture, "", &gradients);

    let video = video.inner();
    let module = burn::module::Module::valid(&student.module);
    check_inside(&mut report, &module, &video, Some(at.visible()));
    let (layers, pooled) = at.run(&at.student("gelu_tanh"), &video);
    check_projections(&mut report, "gelu_tanh.", &at, &parts, (&layers, &pooled));
    check_whole(&mut report, &at, &student, &video);
    check_tables(&mut report, &at);
    report.finish()
}

fn check_projections(
    report: &mut Report,
    prefix: &str,
    at: &Setting,
    parts: &[Alignment; 3],
    (layers, pooled): (&Tensor<4>, &Tensor<2>),
) {
    let names = ["clip_middle", "mae"];
    for (name, part) in names.into_iter().zip(parts) {
        let rows = at.inputs[&format!("target_{name}")].shape[2];
        let found = part.module.project(layers.clone(), Some(at.visible()), rows);
        report.meet(&format!("{prefix}{name}"), &Array::of(found));
    }
    let found = parts[2].module.heads[0].forward(pooled.clone());
    report.meet(&format!("{prefix}clip_final"), &Array::of(found));
}

fn check_losses(
    report: &mut Report,
    at: &Setting,
    parts: &[Alignment; 3],
    (layers, pooled): (Tensor<4>, Tensor<2>),
) -> Gradients {
    let device = autodiff().inner();
    let mut losses = Vec::new();
    for (part, name) in parts.iter().zip(["clip_middle", "mae", "clip_final"]) {
        let target = &at.inputs[&format!("target_{name}")];
        let inputs = if name == "clip_final" {
            Tensors::of("student", pooled.clone()).with("teacher", target.float::<2>(&device))
        } else {
            Tensors::of("student", layers.clone())
                .with("teacher", target.float::<4>(&device))
                .with("visible", at.visible())
        };
        let loss: Tensor<1> = port(&mut part.forward(inputs), "loss");
        report.meet(&format!("loss_{name}"), &Array::of(loss.clone()));
        losses.push(loss);
    }
    let loss = losses.into_iter().reduce(|a, b| a + b).expect("there are three losses");
    report.meet("loss", &Array::of(loss.clone()));
    loss.backward()
}

/// Unit vectors of the teacher's layers, so far apart.
fn tapped(at: &Setting, layers: &Tensor<4>, interval: f64) -> Array {
    let (all, last) = (layers.dims()[0], at.fixture.count("clip_return_layer"));
    let taps: Vec<i64> = taps(all, last, interval).into_iter().map(|tap| tap as i64).collect();
    let taps = Tensor::<1, Int>::from_data(taps.as_slice(), &layers.device());
    Array::of(unit(layers.clone().select(0, taps)))
}

/// The same weights without mask, as a teacher of smaller students.
fn check_whole(report: &mut Report, at: &Setting, student: &Student, video: &Tensor<5>) {
    let mut outputs = student.forward(Tensors::of("video", video.clone()));
    let (layers, pooled): (Tensor<4>, Tensor<2>) =
        (port(&mut outputs, "layers"), port(&mut outputs, "pooled"));
    let interval = at.fixture.number("clip_student_return_interval");
    let found = [interval, 1.0].map(|interval| tapped(at, &layers, interval));
    // The configuration has no interval of the teacher's: the student's, or that of its code.
    let expected = report.values("teacher.z");
    let off = |found: &Array| -> f64 {
        found.values.iter().zip(&expected).map(|(f, e)| (f - e).abs()).sum()
    };
    let [own, code] = found;
    report.meet("teacher.z", if off(&own) <= off(&code) { &own } else { &code });
    report.meet("teacher.x", &Array::of(unit(pooled)));
    let tokens: Tensor<3> = port(&mut outputs, "tokens");
    let (_, map) = student.module.clip_projector.with_map(tokens);
    let [batch, _, _, keys] = map.dims();
    let map = map.mean_dim(1).reshape([batch, keys]).slice_dim(1, 1..keys);
    report.meet("teacher.attn", &Array::of(map));
}

fn check_tables(report: &mut Report, at: &Setting) {
    if at.fixture.flag("sep_pos_embed") {
        return super::internvideo2::check_tables(report, &at.fixture, at.lattice);
    }
    let width = at.fixture.count("embed_dim");
    for (name, extra) in [("pos_embed", 1), ("mae_pos_embed", 0)] {
        let values = positions::joint(at.lattice, width, extra);
        let shape = vec![values.len()];
        let values = values.into_iter().map(f64::from).collect();
        report.meet(&format!("pos_table.{name}"), &Array { shape, values });
    }
}
