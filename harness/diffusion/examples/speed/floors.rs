//! What a forward pass of the U-Net must cost at least, from its shapes alone.
//!
//! Operations are those of convolutions and matrix products, an addition and a multiplication being
//! two; everything else is a hundredth of them. Bytes are those that cross the device's memory when
//! every convolution, normalisation and attention reads its inputs once and writes its output once,
//! and whatever can be done on the way is free: activations, biases, the shift by the time
//! embedding, concatenation, upsampling. A residual that is added on the way is read once. Weights
//! are read once a batch, in the precision that they are multiplied in.

use oodbench_diffusion::net::DdimConfig;

/// Costs of a forward pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Floors {
    pub(crate) operations: u64,
    pub(crate) bytes: u64,
    /// Numbers that training moves.
    pub(crate) parameters: u64,
}

/// Sums over one image.
#[derive(Default)]
struct Walk {
    /// Multiplications of an image.
    products: u64,
    /// Numbers that are read or written for an image.
    moved: u64,
    parameters: u64,
}

impl Walk {
    /// A convolution with a kernel of `k` by `k`; its output is `side` by `side`, its input is
    /// read as it lies in memory, `read` numbers.
    fn conv(&mut self, c_in: u64, c_out: u64, k: u64, side: u64, read: u64) {
        self.products += c_in * c_out * k * k * side * side;
        self.moved += read + c_out * side * side;
        self.parameters += c_in * c_out * k * k + c_out;
    }

    fn norm(&mut self, channels: u64, side: u64) {
        self.moved += 2 * channels * side * side;
        self.parameters += 2 * channels;
    }

    fn linear(&mut self, c_in: u64, c_out: u64) {
        self.products += c_in * c_out;
        self.parameters += c_in * c_out + c_out;
    }

    fn block(&mut self, c_in: u64, c_out: u64, temb: u64, side: u64) {
        let area = side * side;
        self.norm(c_in, side);
        self.conv(c_in, c_out, 3, side, c_in * area);
        self.linear(temb, c_out);
        self.norm(c_out, side);
        // The residual is read where it is added.
        self.conv(c_out, c_out, 3, side, 2 * c_out * area);
        if c_in != c_out {
            self.conv(c_in, c_out, 1, side, c_in * area);
        }
    }

    fn attention(&mut self, channels: u64, side: u64) {
        let area = side * side;
        self.norm(channels, side);
        for _ in 0..3 {
            self.conv(channels, channels, 1, side, 0);
        }
        self.moved += channels * area;
        // Scores and weighted sums, in one kernel that keeps the scores to itself.
        self.products += 2 * channels * area * area;
        self.moved += 4 * channels * area;
        self.conv(channels, channels, 1, side, 2 * channels * area);
    }
}

/// The costs for `n` images whose activations take `size` bytes a number.
pub(crate) fn floors(config: &DdimConfig, n: usize, size: u64) -> Floors {
    let mut walk = Walk::default();
    let ch = config.ch as u64;
    let (temb, image_side) = (4 * ch, config.image_size as u64);
    let has_attention = |side: u64| config.attn_resolutions.contains(&(side as usize));
    let levels: Vec<u64> = config.ch_mult.iter().map(|&mult| ch * mult as u64).collect();
    let blocks = config.num_res_blocks;

    walk.linear(ch, temb);
    walk.linear(temb, temb);
    if config.num_classes > 0 {
        walk.parameters += (config.num_classes as u64 + 1) * temb;
    }
    let (c_in, area) = (config.in_channels as u64, image_side * image_side);
    walk.conv(c_in, ch, 3, image_side, c_in * area);

    let (mut channels, mut side, mut skips) = (ch, image_side, vec![ch]);
    for (level, &c_out) in levels.iter().enumerate() {
        for _ in 0..blocks {
            walk.block(channels, c_out, temb, side);
            channels = c_out;
            skips.push(channels);
            if has_attention(side) {
                walk.attention(channels, side);
            }
        }
        if level + 1 < levels.len() {
            walk.conv(channels, channels, 3, side / 2, channels * side * side);
            side /= 2;
            skips.push(channels);
        }
    }
    walk.block(channels, channels, temb, side);
    walk.attention(channels, side);
    walk.block(channels, channels, temb, side);
    for (level, &c_out) in levels.iter().enumerate().rev() {
        for skip in skips.split_off(skips.len() - blocks - 1).into_iter().rev() {
            walk.block(channels + skip, c_out, temb, side);
            channels = c_out;
            if has_attention(side) {
                walk.attention(channels, side);
            }
        }
        if level > 0 {
            walk.conv(channels, channels, 3, 2 * side, channels * side * side);
            side *= 2;
        }
    }
    walk.norm(channels, side);
    walk.conv(channels, config.out_ch as u64, 3, side, channels * area);

    let n = n as u64;
    Floors {
        operations: 2 * n * walk.products,
        bytes: size * (n * walk.moved + walk.parameters),
        parameters: walk.parameters,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::config;

    /// The parameters of the published network with classes; the operations as PyTorch's counter
    /// has them for `xtask/python/speed.py`, for one image.
    #[test]
    fn the_network_of_cifar_10_costs_what_others_count() {
        let found = floors(&config(128, 32, 0.0).unwrap(), 1, 2);
        assert_eq!((found.parameters, found.operations), (35_751_939, 12_443_713_536));
        let twice = floors(&config(128, 32, 0.0).unwrap(), 2, 2);
        assert_eq!(twice.operations, 2 * found.operations);
        assert!(twice.bytes < 2 * found.bytes, "weights are read once");
    }
}
