//! `mar_diffloss` and `diffusion_cosine`: chains, the AdaLN MLP, its loss and its samples.

use std::path::Path;

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use modules::layers::diffusion::denoiser::Denoiser;
use modules::layers::diffusion::network::timestep_embedding;
use modules::layers::diffusion::process::{Process, Sampler};
use modules::layers::diffusion::schedule::{Schedule, Tables};
use modules::losses::diffusion::{self, mean};
use modules::models::diffusion_decoder;
use serde_json::{Value, json};

use super::fixture::{Array, Arrays, Fixture};
use super::network::{Network, autodiff, check_coverage, check_gradients, dims};
use super::report::Report;

type Decoder = Network<diffusion_decoder::Config>;

fn device() -> Device {
    autodiff().inner()
}

fn plain(array: &Array) -> Tensor<2> {
    array.float(&device())
}

fn steps(array: &Array) -> Vec<usize> {
    array.values.iter().map(|step| *step as usize).collect()
}

/// Part `index` along the first dim.
fn part(array: &Array, index: usize) -> Array {
    let shape = array.shape[1..].to_vec();
    let each: usize = shape.iter().product();
    let values = array.values[index * each..][..each].to_vec();
    Array { shape, values }
}

/// The first half of the rows, twice.
fn doubled(x: Tensor<2>) -> Tensor<2> {
    let half = x.dims()[0] / 2;
    let first = x.slice_dim(0, 0..half);
    Tensor::cat(vec![first.clone(), first], 0)
}

/// Compares values of a table, each at its own size.
fn check_table(report: &mut Report, name: &str, found: &[f64], tolerance: f64) {
    let expected = report.take(name).values;
    let off = |(f, e): (&f64, &f64)| (f - e).abs() / e.abs().max(f64::MIN_POSITIVE);
    let worst = found.iter().zip(&expected).map(off).fold(0.0, f64::max);
    report.same(&format!("length of {name}"), &found.len(), &expected.len());
    report.same(
        &format!("{name} within {tolerance:e}, off by {worst:e}"),
        &(worst <= tolerance),
        &true,
    );
}

/// Values of a table by the name that fixtures give it.
fn column<'a>(tables: &'a Tables, name: &str) -> &'a [f64] {
    match name {
        "betas" => &tables.betas,
        "alphas_cumprod" => &tables.alphas_cumprod,
        "alphas_cumprod_prev" => &tables.alphas_cumprod_prev,
        "sqrt_alphas_cumprod" => &tables.sqrt_alphas_cumprod,
        "sqrt_one_minus_alphas_cumprod" => &tables.sqrt_one_minus_alphas_cumprod,
        "sqrt_recip_alphas_cumprod" => &tables.sqrt_recip_alphas_cumprod,
        "sqrt_recipm1_alphas_cumprod" => &tables.sqrt_recipm1_alphas_cumprod,
        "posterior_variance" => &tables.posterior_variance,
        "posterior_log_variance_clipped" => &tables.posterior_log_variance_clipped,
        "posterior_mean_coef1" => &tables.posterior_mean_coef1,
        "posterior_mean_coef2" => &tables.posterior_mean_coef2,
        other => panic!("no table is called `{other}`"),
    }
}

/// All arrays of a group, which are tables of one chain.
fn check_tables(report: &mut Report, expected: &Arrays, group: &str, chain: &Process, off: f64) {
    for name in expected.keys().filter(|name| report.expects(name)).cloned().collect::<Vec<_>>() {
        match name.strip_prefix(group) {
            Some("timestep_map") => {
                let map = steps(&report.take(&name));
                report.same(&name, &chain.tables().timesteps, &map);
            }
            Some(table) => check_table(report, &name, column(chain.tables(), table), off),
            None => {}
        }
    }
}

fn sampler(temperature: f64) -> (Sampler, bool) {
    (Sampler::Ancestral { temperature }, false)
}

/// Checks `mar_diffloss`.
pub fn check_mar(folder: &Path) -> Report {
    let fixture = Fixture::open(folder);
    let inputs = fixture.arrays("inputs.safetensors");
    let expected = fixture.arrays("expected.safetensors");
    let mut report = Report::new(&fixture, expected.clone());
    let size = json!({ "width": fixture.count("width"), "depth": fixture.count("depth") });
    let learned = if fixture.flag("learn_sigma") { "learned" } else { "small" };
    let options = json!({
        "size": size,
        "schedule": fixture.config["noise_schedule"],
        "steps": fixture.count("diffusion_steps"),
        "variance": learned,
    });
    let sides = dims([("Z", fixture.count("z_channels")), ("C", fixture.count("target_channels"))]);
    let loss: Network<diffusion::Config> =
        Network::load(&fixture, "model.safetensors", options.clone(), &sides);
    check_coverage(&mut report, &fixture, "model.safetensors", &[&loss.taken]);
    check_loss(&mut report, &fixture, &inputs, &loss);
    // The fixture holds these in f32.
    check_tables(&mut report, &expected, "schedule.", &loss.module.process, 1e-7);

    let mut options = options;
    options["channels"] = json!(fixture.count("target_channels"));
    options["sampling"] = json!({
        "steps": fixture.config["num_sampling_steps"],
        "temperature": fixture.number("temperature"),
        "guidance": fixture.number("cfg_scale"),
    });
    let decoder: Decoder = Network::load(&fixture, "model.safetensors", options, &sides);
    check_tables(&mut report, &expected, "respaced.", &decoder.module.process, 1e-7);
    check_steps(&mut report, &inputs, &decoder);
    check_walks(&mut report, &inputs, &decoder);
    report.finish()
}

fn check_loss(
    report: &mut Report,
    fixture: &Fixture,
    inputs: &Arrays,
    loss: &Network<diffusion::Config>,
) {
    let leaf = |name: &str| inputs[name].float::<2>(&autodiff()).require_grad();
    let (target, z, noise) = (leaf("target"), leaf("z"), plain(&inputs["noise"]));
    let t = steps(&inputs["t"]);
    let module = &loss.module;
    report.meet("t_embed", &Array::of(module.net.embed(&t)));
    let x = module.process.q_sample(target.clone(), &t, noise.clone());
    report.meet("x_t", &Array::of(x.clone()));
    report.meet("net_out", &Array::of(module.net.forward(x, &t, z.clone())));
    let terms = module.terms(target.clone(), z.clone(), &t, noise.clone());
    let each = loss.kind.each(&terms);
    report.meet("per_sample.mse", &Array::of(terms.mse));
    report.meet("per_sample.vb", &Array::of(terms.vb.expect("the variance is learned")));
    report.meet("per_sample.loss", &Array::of(each.clone()));
    let mask = inputs["mask"].float::<1>(&device());
    report.meet("masked.loss", &Array::of(mean(each.clone(), Some(mask))));
    let value = mean(each, None);
    report.meet("loss", &Array::of(value.clone()));
    let mut all = value.backward();
    for (name, leaf) in [("target", &target), ("z", &z)] {
        let gradient = leaf.grad(&all).expect("a leaf has a gradient");
        report.meet(&format!("grad_input.{name}"), &Array::of(gradient));
    }
    check_gradients(report, fixture, "", &loss.gradients(&mut all));

    let t = steps(&inputs["extreme.t"]);
    let terms = module.valid().terms(target.inner(), z.inner(), &t, noise);
    report.meet("extreme.per_sample.loss", &Array::of(loss.kind.each(&terms)));
    report.meet("extreme.per_sample.mse", &Array::of(terms.mse));
    report.meet("extreme.per_sample.vb", &Array::of(terms.vb.expect("the variance is learned")));
}

/// Single steps back, each from the same noise.
fn check_steps(report: &mut Report, inputs: &Arrays, decoder: &Decoder) {
    let module = decoder.module.valid();
    let (how, clamp) = decoder.kind.how();
    let (x, z) = (plain(&inputs["init_noise"]), plain(&inputs["z"]));
    for step in 0..module.process.steps() {
        let t = vec![step; x.dims()[0]];
        let told = module.process.timesteps(&t);
        let output = module.net.forward(x.clone(), &told, z.clone());
        let found = module.process.predict(output, x.clone(), &t, clamp);
        report.meet(&format!("p_sample.{step}.pred_xstart"), &Array::of(found.x0.clone()));
        let noise = plain(&part(&inputs["step_noise"], step));
        let next = module.process.step(how, found, (x.clone(), &t), Some(noise));
        report.meet(&format!("p_sample.{step}.sample"), &Array::of(next));
    }
}

/// Walks from the last step and from the one before it, with and without guidance.
fn check_walks(report: &mut Report, inputs: &Arrays, decoder: &Decoder) {
    let module = decoder.module.valid();
    let last = module.process.steps() - 1;
    let guidance = decoder.kind.sampling.guidance;
    for (name, first) in [("sample", last), ("chain", last - 1)] {
        for (name, guidance) in [(name.to_owned(), None), (format!("{name}_cfg"), Some(guidance))] {
            // Both halves of a guided walk have the same noise.
            let alike = |x: Tensor<2>| if guidance.is_some() { doubled(x) } else { x };
            let start = alike(plain(&inputs["init_noise"]));
            let noise = |step: usize| alike(plain(&part(&inputs["step_noise"], first - step)));
            let given = (start, plain(&inputs["z"]));
            let how = decoder.kind.how();
            let walk: Vec<_> = module.sample_from(first, how, given, guidance, noise).collect();
            let out = format!("{name}.out");
            if report.expects(&out) {
                report.meet(&out, &Array::of(walk[first].clone()));
            }
            let all: Tensor<3> = Tensor::stack(walk, 0);
            report.meet(&format!("{name}.trajectory"), &Array::of(all));
        }
    }
}

/// Checks `diffusion_cosine`.
pub fn check_cosine(folder: &Path) -> Report {
    let fixture = Fixture::open(folder);
    let io = fixture.arrays("io.safetensors");
    let given = ["step.t", "step.x0", "step.eps", "step.net_out", "step.noise", "loop.init"];
    let given = [given.as_slice(), &["loop.cond", "loop.noises", "timestep_embedding.t"]].concat();
    let expected: Arrays =
        io.clone().into_iter().filter(|(name, _)| !given.contains(&name.as_str())).collect();
    let mut report = Report::new(&fixture, expected.clone());
    let number = fixture.count("steps");
    check_table(&mut report, "table.named_betas", &Schedule::Cosine.betas(number), 1e-12);
    check_table(&mut report, "linear.betas", &Schedule::Linear.betas(number), 1e-12);
    let sides = dims([("Z", io["loop.cond"].shape[1]), ("C", io["loop.init"].shape[1])]);
    let decoder = |steps: &Value| -> Decoder {
        let at = &fixture.config["loop"];
        let options = json!({
            "size": { "width": at["width"], "depth": at["depth"] },
            "channels": at["target_channels"],
            "steps": number,
            "sampling": { "steps": steps },
        });
        Network::load(&fixture, "weights.safetensors", options, &sides)
    };
    let whole = decoder(&json!(number));
    check_coverage(&mut report, &fixture, "weights.safetensors", &[&whole.taken]);
    check_tables(&mut report, &expected, "table.", &whole.module.process, 1e-12);
    let short = decoder(&fixture.config["respacing"]);
    check_tables(&mut report, &expected, "respaced.", &short.module.process, 1e-12);
    check_rows(&mut report, &io, &whole.module.process);
    let t = steps(&io["timestep_embedding.t"]);
    let values = timestep_embedding(&t).into_iter().map(f64::from).collect();
    let shape = vec![t.len(), values_per_row(&io)];
    report.meet("timestep_embedding", &Array { shape, values });
    let walks = decoder(&fixture.config["loop"]["respacing"]);
    check_loops(&mut report, &io, &walks.module.valid());
    report.finish()
}

fn values_per_row(io: &Arrays) -> usize {
    io["timestep_embedding"].shape[1]
}

/// Meets an array row by row, each row at its own size: they differ by five orders of magnitude.
fn meet_rows(report: &mut Report, name: &str, found: &Array) {
    let expected = report.take(name);
    for row in 0..expected.shape[0] {
        let one = |array: &Array| {
            let each = array.values.len() / expected.shape[0];
            let values = array.values[row * each..][..each].to_vec();
            Array { shape: vec![each], values }
        };
        report.compare(&format!("{name}[{row}]"), &one(found), &one(&expected));
    }
}

/// Everything that a step computes, for rows at steps of their own.
fn check_rows(report: &mut Report, io: &Arrays, chain: &Process) {
    let [x0, eps, output, noise] =
        ["x0", "eps", "net_out", "noise"].map(|name| plain(&io[&format!("step.{name}")]));
    let t = steps(&io["step.t"]);
    let x = chain.q_sample(x0.clone(), &t, eps.clone());
    meet_rows(report, "step.x_t", &Array::of(x.clone()));
    let posterior = chain.posterior(x0.clone(), x.clone(), &t);
    meet_rows(report, "step.q_posterior_mean", &Array::of(posterior.mean));
    meet_rows(report, "step.q_posterior_logvar", &Array::of(posterior.log_variance));
    let predict = |clamp| chain.predict(output.clone(), x.clone(), &t, clamp);
    let found = predict(false);
    meet_rows(report, "step.pred_xstart", &Array::of(found.x0));
    meet_rows(report, "step.mean", &Array::of(found.next.mean));
    meet_rows(report, "step.log_variance", &Array::of(found.next.log_variance.clone()));
    meet_rows(report, "step.variance", &Array::of(found.next.log_variance.exp()));
    let terms = chain.terms(output.clone(), (x0, x.clone()), &t, eps);
    let vb = terms.vb.expect("the variance is learned");
    meet_rows(report, "step.loss", &Array::of(terms.mse.clone() + vb.clone()));
    meet_rows(report, "step.mse", &Array::of(terms.mse));
    meet_rows(report, "step.vb_bits", &Array::of(vb));
    let back = |how: (Sampler, bool)| {
        let noise = Some(noise.clone());
        Array::of(chain.step(how.0, predict(how.1), (x.clone(), &t), noise))
    };
    let clamped = back((sampler(1.0).0, true));
    meet_rows(report, "step.sample_clip_denoised", &clamped);
    for name in io.keys() {
        if let Some(temperature) = name.strip_prefix("step.sample_T") {
            meet_rows(report, name, &back(sampler(temperature.parse().expect("a number"))));
        } else if let Some(eta) = name.strip_prefix("step.ddim_eta") {
            let eta = eta.parse().expect("a number");
            meet_rows(report, name, &back((Sampler::Ddim { eta }, false)));
        }
    }
}

fn check_loops(report: &mut Report, io: &Arrays, module: &Denoiser) {
    let last = module.process.steps() - 1;
    for name in io.keys() {
        let (temperature, guidance) = match name.strip_prefix("loop.sample_") {
            Some(rest) if rest.starts_with('T') => (rest[1..].parse().expect("a number"), None),
            Some(rest) => (1.0, Some(rest[3..].parse().expect("`cfg` and a number"))),
            None => continue,
        };
        let start = plain(&io["loop.init"]);
        let start = if guidance.is_some() { doubled(start) } else { start };
        let given = (start, plain(&io["loop.cond"]));
        let noise = |step: usize| plain(&part(&io["loop.noises"], last - step));
        let sample = module.sample(sampler(temperature), given, guidance, noise).last();
        report.meet(name, &Array::of(sample.expect("a chain has a step")));
    }
}
