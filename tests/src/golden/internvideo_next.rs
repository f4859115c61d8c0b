//! `internvideo_next_stage1` and `internvideo_next_stage2`: encoder, predictor, and their losses.

use std::path::Path;

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor};
use modules::init::Init;
use modules::kind::Kind;
use modules::layers::block::Context;
use modules::layers::norm::unit;
use modules::layers::tokens;
use modules::losses::diffusion::mean;
use modules::losses::{cosine, diffusion, feature_alignment};
use modules::models::{internvideo_next, latent_predictor, patches};
use modules::tensors::Tensors;
use schemas::dims::Dims;
use serde_json::{Value, json};

use super::fixture::{Array, Arrays, Fixture};
use super::network::{Network, autodiff, check_coverage, check_moments, dims, port};
use super::report::Report;
use super::vjepa2::meet_named;

type Encoder = Network<internvideo_next::Config>;
type Predictor = Network<latent_predictor::Config>;
type Align = Network<feature_alignment::Config>;

const WEIGHTS: &str = "weights.safetensors";

fn device() -> Device {
    autodiff().inner()
}

/// Extents of clip, lattice and class tokens.
struct Setting {
    fixture: Fixture,
    io: Arrays,
    clip: Dims,
    lattice: [usize; 3],
    front: usize,
    width: usize,
}

impl Setting {
    fn new(folder: &Path) -> Self {
        let fixture = Fixture::open(folder);
        let io = fixture.arrays("io.safetensors");
        let [b, _, t, h, w] = io["input.video"].shape[..] else { panic!("a video has five dims") };
        let patch = fixture.count("patch_size");
        let lattice = [t / fixture.count("tubelet_size"), h / patch, w / patch];
        let (front, width) = (fixture.count("cls_token_num"), fixture.count("embed_dim"));
        let clip = dims([("B", b), ("T", t), ("H", h), ("W", w)]);
        Self { fixture, io, clip, lattice, front, width }
    }

    fn report(&self) -> Report {
        let expected = self.io.clone().into_iter();
        let expected = expected.filter(|(name, _)| !name.starts_with("input."));
        Report::new(&self.fixture, expected.collect())
    }

    fn all(&self) -> usize {
        self.lattice.iter().product()
    }

    /// Dims of the nodes behind the encoder, with some more.
    fn behind<const N: usize>(&self, more: [(&str, usize); N]) -> Dims {
        let [t, h, w] = self.lattice;
        let mut all = dims([("B", self.clip["B"]), ("t", t), ("h", h), ("w", w)]);
        all.extend(dims([("D", self.width)]));
        all.extend(dims(more));
        all
    }

    /// Visible and hidden patches of a mask.
    fn places(&self, mask: &str) -> [Tensor<2, Int>; 2] {
        [0.0, 1.0].map(|value| self.io[mask].places(value, 0).int(&device()))
    }

    fn encoder(&self, file: &str, taps: Option<usize>) -> Encoder {
        let found = internvideo_next::Config::published(&self.fixture.config);
        let mut options = found.expect("the configuration is of this kind").options;
        if let Some(taps) = taps {
            options["taps"] = taps.into();
        }
        Network::load(&self.fixture, file, options, &self.clip)
    }

    fn predictor(&self, head: bool, visible: usize) -> Predictor {
        let found = latent_predictor::Config::published(&self.fixture.config);
        let found = found.expect("the configuration is of this kind");
        let mut options = found.options;
        options["head"] = head.into();
        let sees = [("S", self.front + visible), ("V", visible), ("M", self.all() - visible)];
        let mut sides = found.dims;
        sides.extend(self.behind(sees));
        Network::load(&self.fixture, WEIGHTS, options, &sides)
    }

    /// A head on the pooled feature.
    fn pooled_head(&self, width: usize, options: Value) -> Align {
        let sides = dims([("D", self.fixture.count("clip_embed_dim")), ("E", width)]);
        let mut all = json!({ "of": "pooled", "head": "mlp" });
        for (name, value) in options.as_object().expect("options") {
            all[name] = value.clone();
        }
        Network::load(&self.fixture, WEIGHTS, all, &sides)
    }
}

/// Compares the encoder's residual stream.
fn check_encoder(
    report: &mut Report,
    encoder: &Encoder,
    video: &Tensor<5>,
    visible: &Tensor<2, Int>,
    prefix: &str,
) {
    let module = encoder.module.valid();
    let mut x = module.embed(video.clone(), Some(visible.clone()));
    report.meet(&format!("{prefix}mid.encoder_input"), &Array::of(x.clone()));
    for (number, block) in module.blocks.iter().enumerate() {
        x = block.forward(x, &Context::default());
        report.meet(&format!("{prefix}mid.block.{number}"), &Array::of(x.clone()));
    }
}

/// Compares the predictor's residual stream, samples packed into rows, and the head on all patches.
fn check_predictor(
    report: &mut Report,
    predictor: &Predictor,
    tokens: Tensor<3>,
    visible: &Tensor<2, Int>,
    prefix: &str,
) {
    let module = predictor.module.valid();
    let front = tokens.dims()[1] - visible.dims()[1];
    let x = module.lattice(tokens, visible);
    let mut meet = |name: &str, x: &Tensor<3>| {
        report.meet(&format!("{prefix}mid.{name}"), &Array::of(x.clone()));
    };
    meet("predictor.input_encdim", &x);
    let x = module.bridge.forward(x);
    meet("predictor.input_proj", &x);
    let states = module.stack.run(&module.blocks, x, None, &super::network::call());
    for (number, state) in states.iter().enumerate() {
        meet(&format!("predictor.layer.{number}"), state);
    }
    if let (Some(head), Some(end)) = (&module.head, states.last()) {
        let rows = end.dims()[1];
        let end = head.forward(end.clone().slice_dim(1, front..rows));
        meet("selfdist_decoder", &unit(end));
    }
}

fn predict(
    predictor: &Predictor,
    tokens: &Tensor<3>,
    [visible, hidden]: &[Tensor<2, Int>; 2],
) -> Tensors {
    let inputs = Tensors::of("tokens", tokens.clone())
        .with("visible", visible.clone())
        .with("hidden", hidden.clone());
    predictor.forward(inputs)
}

/// Checks stage 1: features of a teacher, and pixels by diffusion.
pub fn check_stage1(folder: &Path) -> Report {
    let at = Setting::new(folder);
    let mut report = at.report();
    // All blocks are tapped: the listed ones lie at any distance.
    let encoder = at.encoder(WEIGHTS, Some(at.fixture.count("depth")));
    let places = at.places("input.mask");
    let visible = places[0].dims()[1];
    let predictor = at.predictor(false, visible);
    let teacher = &at.io["input.teacher_middle"];
    let [layers, _, rows, width] = teacher.shape[..] else { panic!("tokens of layers") };
    let options = json!({ "head": "mlp", "class_rows": at.front });
    let sides = [("K", layers), ("L", layers), ("S", at.front + visible), ("V", visible)];
    let mut sides = at.behind(sides);
    sides.extend(dims([("M", rows), ("E", width)]));
    let middle: Align = Network::load(&at.fixture, WEIGHTS, options, &sides);
    let last = at.fixture.count("clip_teacher_final_dim");
    let last = at.pooled_head(last, json!({ "unit": false }));
    let paint = diffusion(&at);
    let taken = [&encoder.taken, &predictor.taken, &middle.taken, &last.taken, &paint.taken];
    check_coverage(&mut report, &at.fixture, WEIGHTS, &taken);

    let video = at.io["input.video"].float::<5>(&autodiff()).require_grad();
    let inputs = Tensors::of("video", video.clone()).with("visible", places[0].clone());
    let mut seen = encoder.forward(inputs);
    let tokens: Tensor<3> = port(&mut seen, "tokens");
    let pooled: Tensor<2> = port(&mut seen, "pooled");
    report.meet("mid.attn_pool", &Array::of(pooled.clone()));
    let student: Tensor<4> = port(&mut seen, "layers");
    let student = student.select(0, at.fixture.list("student_return_layers"));
    let clip_middle = check_middle(&mut report, &at, &middle, student, &places[0]);
    let clip_final = check_final(&mut report, &at, &last, pooled);
    let states: Tensor<3> = port(&mut predict(&predictor, &tokens, &places), "states");
    let painted = check_diffusion(&mut report, &at, &paint, (video.clone(), states), &places[1]);
    let total = clip_middle + clip_final + painted;
    report.meet("loss.total", &Array::of(total.clone()));

    let mut all = total.backward();
    report.meet("grad.input", &Array::of(video.grad(&all).expect("the video has a gradient")));
    let mut gradients = encoder.gradients(&mut all);
    gradients.extend(predictor.gradients(&mut all));
    gradients.extend(middle.gradients(&mut all));
    gradients.extend(last.gradients(&mut all));
    gradients.extend(paint.gradients(&mut all));
    meet_named(&mut report, "grad.", &gradients);

    let video = video.inner();
    check_encoder(&mut report, &encoder, &video, &places[0], "");
    check_predictor(&mut report, &predictor, tokens.inner(), &places[0], "");
    check_patches(&mut report, &at, &encoder, video);
    report.finish()
}

fn diffusion(at: &Setting) -> Network<diffusion::Config> {
    let of = &at.fixture.config["diffusion"];
    let options = json!({
        "size": { "width": of["width"], "depth": of["depth"] },
        "schedule": of["schedule"],
        "steps": of["steps"],
        "variance": if of["learn_sigma"] == true { "learned" } else { "small" },
        "repeats": of["batch_mul"],
    });
    let width = at.fixture.config["predictor"]["hidden_size"].as_u64().expect("a number");
    let channels = at.io["input.noise"].shape[1];
    let sides = dims([("Z", width as usize), ("C", channels)]);
    Network::load(&at.fixture, WEIGHTS, options, &sides)
}

/// Normed patches, tokens, and the position table at the start.
fn check_patches(report: &mut Report, at: &Setting, encoder: &Encoder, video: Tensor<5>) {
    let module = encoder.module.valid();
    let numbers = module.patch_embed.numbers(video.clone());
    report.meet("mid.patch_embed.norm_before", &Array::of(numbers));
    report.meet("mid.patch_embed", &Array::of(module.patch_embed.forward(video)));
    let fresh = encoder.kind.init(&at.clip, &Init::new(0, "start", &device()));
    report.meet("init.pos_embed", &Array::of(fresh.pos_embed.val()));
}

fn check_middle(
    report: &mut Report,
    at: &Setting,
    middle: &Align,
    student: Tensor<4>,
    visible: &Tensor<2, Int>,
) -> Tensor<1> {
    let teacher = at.io["input.teacher_middle"].float::<4>(&device());
    let found = middle.module.project(student.clone(), Some(visible.clone()), teacher.dims()[2]);
    report.meet("out.clip_middle", &Array::of(found));
    let wanted = middle.module.targets(teacher.clone(), Some(visible.clone()));
    report.meet("out.teacher_middle_visible", &Array::of(wanted));
    let inputs =
        Tensors::of("student", student).with("teacher", teacher).with("visible", visible.clone());
    let loss: Tensor<1> = port(&mut middle.forward(inputs), "loss");
    report.meet("loss.clip_middle", &Array::of(loss.clone()));
    loss
}

fn check_final(report: &mut Report, at: &Setting, last: &Align, pooled: Tensor<2>) -> Tensor<1> {
    let frames = at.io["input.teacher_final_per_frame"].float::<2>(&device());
    let (batch, width) = (at.clip["B"], frames.dims()[1]);
    let frames = frames.clone().reshape([batch, frames.dims()[0] / batch, width]);
    let teacher: Tensor<2> = frames.mean_dim(1).squeeze_dim(1);
    report.meet("out.teacher_final", &Array::of(teacher.clone()));
    let found = last.module.heads[0].forward(pooled.clone());
    report.meet("out.clip_final", &Array::of(found));
    let inputs = Tensors::of("student", pooled).with("teacher", teacher);
    let loss: Tensor<1> = port(&mut last.forward(inputs), "loss");
    report.meet("loss.clip_final", &Array::of(loss.clone()));
    loss
}

fn check_diffusion(
    report: &mut Report,
    at: &Setting,
    paint: &Network<diffusion::Config>,
    (video, states): (Tensor<5>, Tensor<3>),
    hidden: &Tensor<2, Int>,
) -> Tensor<1> {
    let [patch, tubelet] = ["patch_size", "tubelet_size"].map(|side| at.fixture.count(side));
    let options = json!({ "patch": patch, "tubelet": tubelet });
    let cut: Network<patches::Config> = Network::load(&at.fixture, WEIGHTS, options, &at.clip);
    let inputs = Tensors::of("video", video).with("hidden", hidden.clone());
    let target: Tensor<3> = port(&mut cut.forward(inputs), "patches");
    let [batch, vectors, channels] = target.dims();
    let target = target.reshape([batch * vectors, channels]);
    let width = states.dims()[2];
    let z = states.reshape([batch * vectors, width]);
    let noise = at.io["input.noise"].float::<2>(&device());
    // Repeats are outermost.
    let repeats = noise.dims()[0] / (batch * vectors);
    let [target, z] = [target, z].map(|rows| rows.repeat_dim(0, repeats));
    let t: Vec<usize> = at.io["input.t"].values.iter().map(|t| *t as usize).collect();
    let module = &paint.module;
    let x = module.process.q_sample(target.clone(), &t, noise.clone());
    let output = module.net.forward(x.clone(), &module.process.timesteps(&t), z.clone());
    let mut meet = |name: &str, array: Array| {
        report.meet(&format!("mid.diffusion.{name}"), &array);
    };
    meet("target", Array::of(target.clone()));
    meet("z", Array::of(z.clone()));
    meet("x_t", Array::of(x));
    meet("net_out", Array::of(output));
    let terms = module.terms(target, z, &t, noise);
    let each = paint.kind.each(&terms);
    meet("mse", Array::of(terms.mse));
    meet("vb", Array::of(terms.vb.expect("the variance is learned")));
    meet("loss", Array::of(each.clone()));
    let loss = mean(each, None);
    report.meet("loss.diffusion", &Array::of(loss.clone()));
    loss
}

/// Checks stage 2: a frozen teacher's tokens under two masks, in a clip longer than the tables.
pub fn check_stage2(folder: &Path) -> Report {
    const TEACHER: &str = "teacher_weights.safetensors";
    let at = Setting::new(folder);
    let mut report = at.report();
    let (encoder, teacher) = (at.encoder(WEIGHTS, None), at.encoder(TEACHER, None));
    check_coverage(&mut report, &at.fixture, TEACHER, &[&teacher.taken]);
    let masks = ["v1", "v2"];
    let places = masks.map(|mask| at.places(&format!("input.mask_{mask}")));
    let predictor = at.predictor(true, places[0][0].dims()[1]);
    let align = at.pooled_head(at.width, json!({}));
    // Neither has a loss or an output: a head of visible tokens, and stage 1's table for its heads.
    let keys = at.fixture.arrays(WEIGHTS).into_keys();
    let idle = ["selfdist_normproj_decoder.", "clip_pos_embed"];
    let idle = keys.filter(|key| idle.iter().any(|name| key.starts_with(name))).collect();
    let taken = [&encoder.taken, &predictor.taken, &align.taken, &idle];
    check_coverage(&mut report, &at.fixture, WEIGHTS, &taken);
    report.meet("pos_embed_interpolated", &Array::of(encoder.module.table()));
    report.meet("diff_pos_embed_interpolated", &Array::of(predictor.module.table(at.front)));

    let video = at.io["input.video"].float::<5>(&autodiff()).require_grad();
    let mut taught = teacher.forward(Tensors::of("video", video.clone()));
    let target = port::<3>(&mut taught, "tokens").inner();
    let rows = target.dims()[1];
    let patches = target.clone().slice_dim(1, at.front..rows);
    report.meet("teacher.tokens", &Array::of(patches.clone()));
    report.meet("teacher.pooled", &Array::of(port::<2>(&mut taught, "pooled")));

    let mut losses = Vec::new();
    for (mask, places) in masks.into_iter().zip(&places) {
        let inputs = Tensors::of("video", video.clone()).with("visible", places[0].clone());
        let mut seen = encoder.forward(inputs);
        let tokens: Tensor<3> = port(&mut seen, "tokens");
        let aligned = align.module.heads[0].forward(port::<2>(&mut seen, "pooled"));
        report.meet(&format!("{mask}.out.x_align"), &Array::of(aligned));
        let predicted: Tensor<3> = port(&mut predict(&predictor, &tokens, places), "predicted");
        report.meet(&format!("{mask}.out.pred_masked"), &Array::of(predicted.clone()));
        let wanted = unit(tokens::gather(patches.clone(), places[1].clone()));
        report.meet(&format!("{mask}.target"), &Array::of(wanted));
        let loss = distance(&at, predicted, target.clone(), &places[1]);
        report.meet(&format!("{mask}.loss"), &Array::of(loss.clone()));
        losses.push(loss);

        let prefix = format!("{mask}.");
        check_encoder(&mut report, &encoder, &video.clone().inner(), &places[0], &prefix);
        check_predictor(&mut report, &predictor, tokens.inner(), &places[0], &prefix);
    }
    let total = Tensor::cat(losses, 0).sum();
    report.meet("loss.total", &Array::of(total.clone()));
    let mut all = total.backward();
    report.meet("grad.input", &Array::of(video.grad(&all).expect("the video has a gradient")));
    let mut gradients = encoder.gradients(&mut all);
    gradients.extend(predictor.gradients(&mut all));
    meet_named(&mut report, "grad.", &gradients);

    let named = ("models/internvideo_next", &at.clip);
    check_moments(&mut report, (&at.fixture, &at.io), &teacher, named, [TEACHER, WEIGHTS]);
    report.finish()
}

/// The loss node between predicted tokens and those of the teacher, class tokens first.
fn distance(
    at: &Setting,
    predicted: Tensor<3>,
    target: Tensor<3>,
    hidden: &Tensor<2, Int>,
) -> Tensor<1> {
    let sides = at.behind([("N", target.dims()[1]), ("M", hidden.dims()[1])]);
    let loss: Network<cosine::Config> = Network::load(&at.fixture, WEIGHTS, json!({}), &sides);
    let inputs =
        Tensors::of("predicted", predicted).with("target", target).with("hidden", hidden.clone());
    port(&mut loss.forward(inputs), "loss")
}
