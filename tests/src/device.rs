//! The device that tests compute on: `flex`, or what `PLAYHOUSE_DEVICE` names.

use burn::tensor::Device;

/// Its name.
pub fn name() -> String {
    std::env::var("PLAYHOUSE_DEVICE").unwrap_or_else(|_| "flex".to_owned())
}

/// The device, without autodiff.
pub fn device() -> Device {
    modules::device::by_name(&name()).unwrap_or_else(|error| panic!("{error}"))
}
