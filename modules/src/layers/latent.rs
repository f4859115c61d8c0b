//! Predicted vectors beside those of a teacher at the same tokens: what latent losses share.

use burn::tensor::{FloatDType, Int, Tensor};
use schemas::dims::Dims;
use schemas::entry::OptionProblem;
use schemas::node::NodeError;
use schemas::port::Ports;

use super::size::side;
use super::tokens;
use crate::tensors::Tensors;

/// Ports of a latent loss: `predicted`, `target` and, where it is wired, `hidden`.
pub fn ports(wired: &[String], about: &str) -> Ports {
    let chosen = wired.iter().any(|port| port == "hidden");
    let lattice = |ports: Ports| if chosen { ports.lattice("t h w") } else { ports };
    let ports = lattice(Ports::default().input("predicted", "B M D"));
    let ports =
        ports.about("predicted vectors").stopped("target", if chosen { "B N D" } else { "B M D" });
    lattice(ports)
        .about("the teacher's vectors, of all patches with `hidden`")
        .stopped("hidden", "B M")
        .int()
        .optional()
        .lattice("t h w")
        .about("indices of the predicted patches")
        .loss("loss")
        .about(about)
}

/// Problems that the dims show.
pub fn check(dims: &Dims) -> Vec<OptionProblem> {
    let (all, rows) = (patches(dims), side(dims, "N"));
    let mut problems = Vec::new();
    if dims.contains_key("N") && rows < all {
        let message = format!("the teacher gives {rows} tokens, but the lattice has {all}");
        let hint = "let the teacher see the whole clip: disconnect its `visible`";
        problems.push(OptionProblem::new("", message, hint));
    }
    problems
}

fn patches(dims: &Dims) -> usize {
    side(dims, "t") * side(dims, "h") * side(dims, "w")
}

/// Tokens of the teacher before its patches: class tokens.
pub fn front(dims: &Dims) -> usize {
    side(dims, "N").saturating_sub(patches(dims))
}

/// Predicted and wanted vectors, `[B, M, D]` in f32. The teacher gives `front` class tokens first.
pub fn pair(inputs: &mut Tensors, front: usize) -> Result<[Tensor<3>; 2], NodeError> {
    let predicted: Tensor<3> = inputs.take("predicted")?;
    let target: Tensor<3> = inputs.take("target")?;
    let hidden: Option<Tensor<2, Int>> = inputs.take_if("hidden")?;
    let target = match hidden {
        Some(hidden) => tokens::gather(target, hidden.add_scalar(front as i64)),
        None => target,
    };
    Ok([predicted, target].map(|x| x.cast(FloatDType::F32)))
}

/// Mean 0 and variance 1 over the channels, as LayerNorm without weight and bias.
pub fn standard(x: Tensor<3>) -> Tensor<3> {
    let centred = x.clone() - x.mean_dim(2);
    let variance = centred.clone().square().mean_dim(2);
    centred / variance.add_scalar(1e-5).sqrt()
}

/// Mean over everything, in a fixed order: per vector, then over vectors.
pub fn mean(x: Tensor<3>) -> Tensor<1> {
    let [batch, tokens, _] = x.dims();
    x.mean_dim(2).reshape([1, batch * tokens]).mean_dim(1).squeeze_dim(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    #[test]
    fn targets_are_taken_behind_the_class_tokens() {
        let device = Device::flex();
        let predicted = Tensor::<3>::from_data([[[1.0], [2.0]]], &device);
        let target = Tensor::<3>::from_data([[[9.0], [10.0], [11.0], [12.0]]], &device);
        let hidden = Tensor::<2, Int>::from_data([[2, 0]], &device);
        let mut inputs =
            Tensors::of("predicted", predicted).with("target", target).with("hidden", hidden);
        let [_, target] = pair(&mut inputs, 1).unwrap();
        assert_eq!(target.into_data().try_to_vec::<f32>().unwrap(), [12.0, 10.0]);
    }

    #[test]
    fn a_teacher_that_sees_a_part_is_refused() {
        let sides = [("t", 2), ("h", 2), ("w", 2), ("N", 9), ("M", 3)];
        let mut dims: Dims = sides.map(|(name, value)| (name.to_owned(), value)).into();
        assert_eq!((check(&dims).len(), front(&dims)), (0, 1));
        dims.insert("N".to_owned(), 7);
        assert_eq!(check(&dims).len(), 1);
    }
}
