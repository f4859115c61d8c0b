//! Diffusion of single vectors: noise schedules, the chain, and a network that removes noise.
//!
//! Reading order: `schedule` (tables), `process` (the chain on rows `[N, C]`), `likelihood`,
//! `network` (the AdaLN MLP), `denoiser` (network and chain, as the kinds hold them), `draws`.
//! Source: Ho et al. 2020, "DDPM" (arXiv 2006.11239); Nichol and Dhariwal 2021, "Improved DDPM"
//! (arXiv 2102.09672); Song et al. 2021, "DDIM" (arXiv 2010.02502).

pub mod denoiser;
pub mod draws;
pub mod likelihood;
pub mod network;
pub mod process;
pub mod schedule;
