//! Devices by name: `flex`, `tch`, `tch:cuda:0`.

use burn::tensor::Device;
use schemas::node::NodeError;

/// Names of the devices that this build can make.
pub fn available() -> Vec<&'static str> {
    let mut names = Vec::new();
    if cfg!(feature = "flex") {
        names.push("flex");
    }
    if cfg!(feature = "tch") {
        names.extend(["tch", "tch:cuda:N"]);
    }
    names
}

/// The device of this name, without autodiff.
pub fn by_name(name: &str) -> Result<Device, NodeError> {
    #[cfg(feature = "tch")]
    if let Some(index) = name.strip_prefix("tch:cuda:").and_then(|n| n.parse::<usize>().ok()) {
        return Ok(Device::libtorch_cuda(index));
    }
    match name {
        #[cfg(feature = "flex")]
        "flex" => Ok(Device::flex()),
        #[cfg(feature = "tch")]
        "tch" => Ok(Device::libtorch()),
        _ => Err(NodeError::Device { device: name.to_owned(), available: available().join(", ") }),
    }
}

/// The device that reads files: the first one compiled in.
pub(crate) fn host() -> Device {
    #[cfg(feature = "flex")]
    let device = Device::flex();
    #[cfg(all(feature = "tch", not(feature = "flex")))]
    let device = Device::libtorch();
    device
}
