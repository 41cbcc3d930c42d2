//! Operations on channels-last tensors.

mod arrange;
mod attention;
mod classifier;
mod conv;
mod dropout;
mod elementwise;
mod group_norm;
mod joined;
mod layout;

pub use arrange::{avg_pool_2x, cat_channels, pad_end, upsample_2x};
pub use attention::attention;
pub use classifier::{max_pool_3x3_stride_2, scale_shift};
pub use conv::{conv2d, conv2d_by};
pub use dropout::dropout;
pub use elementwise::{add, add_bias};
pub use group_norm::group_norm;
pub use joined::{group_norm_joined, project_joined};
pub use layout::{pack_weight, to_channels_first, to_channels_last};
