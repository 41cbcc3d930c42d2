//! Every operation in channels-last order against the same one in channels-first order.

use candle_core::Var;

use super::*;
use crate::kernels::testing::{assert_close, random, var};
use crate::layers::{Conv2d, ConvShape, GroupNorm, Linear};

/// Values and gradients of an operation in both orders. `vars` are what it may depend on beside its
/// input, the first one.
#[track_caller]
fn check(vars: &[&Var], op: impl Fn(Map) -> Result<Map>) {
    let in_form = |form| {
        let map = op(Map::enter(vars[0], form).unwrap()).unwrap();
        let channels = match form.order {
            Order::ChannelsFirst => map.xs.dim(1),
            Order::ChannelsLast => map.xs.dim(3),
        };
        let ys = map.leave(channels.unwrap()).unwrap();
        let probe = random("probe", ys.dims());
        let grads = ys.mul(&probe).unwrap().sum_all().unwrap().backward().unwrap();
        let grads: Vec<Tensor> = vars.iter().map(|v| grads.get(v).unwrap().clone()).collect();
        (ys, grads)
    };
    let (last, first) = (in_form(Form::LAST), in_form(Form::FIRST));
    assert_close(&last.0, &first.0, 1e-5);
    for (last, first) in last.1.iter().zip(&first.1) {
        assert_close(last, first, 2e-5);
    }
}

fn builder(vars: &[(&str, &Var)]) -> candle_nn::VarBuilder<'static> {
    let vars = vars.iter().map(|(name, var)| ((*name).to_owned(), var.as_tensor().clone()));
    candle_nn::VarBuilder::from_tensors(vars.collect(), DType::F32, &Device::Cpu)
}

#[test]
fn what_moves_pixels_is_the_same_in_both_orders() {
    let xs = var("xs", &[2, 8, 4, 6]);
    check(&[&xs], |map| map.upsample_2x());
    check(&[&xs], |map| map.avg_pool_2x());
    check(&[&xs], |map| map.pad_end());
    check(&[&xs], |map| map.dropout(0.3, 7));
    check(&[&xs], |map| map.add(&map));
    check(&[&xs], |map| map.cat_channels(&map.upsample_2x()?.avg_pool_2x()?));
}

type Op<'a> = &'a dyn Fn(&Map) -> Result<Map>;

/// Of channels that stay apart each operation makes what it makes of joined ones.
#[test]
fn channels_beside_others_are_the_same_in_both_orders() {
    let (xs, others) = (random("xs", &[2, 16, 4, 6]), random("others", &[2, 8, 4, 6]));
    let (scale, shift) = (random("scale", &[24]), random("shift", &[2, 24]));
    let vb = |kernel: usize| {
        let weight = random("weight", &[8, 24, kernel, kernel]);
        let tensors = [("weight".to_owned(), weight), ("bias".to_owned(), random("bias", &[8]))];
        candle_nn::VarBuilder::from_tensors(tensors.into(), DType::F32, &Device::Cpu)
    };
    let conv = |shape: ConvShape| Conv2d::with_bias(24, 8, shape, vb(shape.kernel)).unwrap();
    let [projection, strided, wide] = [ConvShape::one(1), ConvShape::one(2), ConvShape::three(1)];
    let [projection, strided, wide] = [conv(projection), conv(strided), conv(wide)];
    let shifted = |map: &Map| map.shifted(&shift);
    let cases: [(&str, Op<'_>); 14] = [
        ("settled", &|map| map.clone().settled()),
        ("norm", &|map| map.group_norm(&scale, &scale, 3, 1e-6, Activation::Silu)),
        ("norms of images", &|map| map.group_norm(&shift, &shift, 4, 1e-6, Activation::Identity)),
        ("shifted, norm", &|map| {
            shifted(map)?.group_norm(&scale, &scale, 3, 1e-6, Activation::Silu)
        }),
        ("projection", &|map| projection.forward_map(map)),
        ("shifted, projection", &|map| projection.forward_map(&shifted(map)?)),
        ("strided projection", &|map| strided.forward_map(map)),
        ("convolution", &|map| wide.forward_map(map)),
        ("sum", &|map| map.add(&shifted(map)?)),
        ("upsampled", &|map| shifted(map)?.upsample_2x()),
        ("pooled", &|map| map.avg_pool_2x()),
        ("padded", &|map| map.pad_end()),
        ("dropout", &|map| map.dropout(0.3, 7)),
        ("attention", &|map| map.attention(2, 0.4)?.cat_channels(map)),
    ];
    let of = |form, op: Op<'_>| {
        let (xs, others) = (Map::enter(&xs, form).unwrap(), Map::enter(&others, form).unwrap());
        let joined = xs.cat_channels(&others).unwrap();
        assert_eq!(joined.beside.is_some(), form == Form::LAST);
        let ys = op(&joined).unwrap().settled().unwrap();
        let channels = if form == Form::LAST { ys.xs.dim(3) } else { ys.xs.dim(1) };
        ys.leave(channels.unwrap()).unwrap()
    };
    for (what, op) in cases {
        let (last, first) = (of(Form::LAST, op), of(Form::FIRST, op));
        assert_eq!(last.dims(), first.dims(), "{what}");
        assert_close(&last, &first, 1e-5);
    }
    let map = |xs: &Tensor| Map::enter(xs, Form::LAST).unwrap();
    let error = map(&xs).cat_channels(&map(&random("low", &[2, 8, 3, 6]))).unwrap_err();
    assert!(error.to_string().contains("expected images of one size"), "{error}");
}

/// Where a gradient may be asked for channels are joined once, not by each operation.
#[test]
fn channels_with_a_gradient_are_joined_at_once() {
    let (xs, others) = (var("xs", &[2, 8, 4, 6]), random("others", &[2, 16, 4, 6]));
    let map = |xs: &Tensor| Map::enter(xs, Form::LAST).unwrap();
    assert!(map(&xs).cat_channels(&map(&others)).unwrap().beside.is_none());
    assert!(map(&others).cat_channels(&map(&xs)).unwrap().beside.is_none());
    let scale = var("scale", &[24]);
    check(&[&xs, &scale], |map| {
        let others = Map::enter(&others, Form { order: map.order(), dtype: DType::F32 })?;
        map.cat_channels(&others)?.group_norm(&scale, &scale, 3, 1e-6, Activation::Silu)
    });
    // Constant images beside each other, and weights that are learned.
    let (weight, bias) = (var("weight", &[8, 24, 1, 1]), var("bias", &[8]));
    let vb = builder(&[("weight", &weight), ("bias", &bias)]);
    let projection = Conv2d::with_bias(24, 8, ConvShape::one(1), vb).unwrap();
    let in_form = |form| {
        let image = |name, channels| Map::enter(&random(name, &[2, channels, 4, 6]), form).unwrap();
        let map = image("xs", 8).cat_channels(&image("others", 16)).unwrap();
        assert_eq!(map.beside.is_some(), form == Form::LAST);
        let hs = map.group_norm(&scale, &scale, 3, 1e-6, Activation::Silu).unwrap();
        let ys = projection.forward_map(&map).unwrap().leave(8).unwrap();
        let sum = |tensor: Tensor| tensor.sqr().unwrap().sum_all().unwrap();
        let loss = (sum(hs.leave(24).unwrap()) + sum(ys)).unwrap();
        let grads = loss.backward().unwrap();
        [&scale, &weight, &bias].map(|var| grads.get(var).unwrap().clone())
    };
    for (last, first) in in_form(Form::LAST).iter().zip(&in_form(Form::FIRST)) {
        assert_close(last, first, 2e-5);
    }
}

#[test]
fn attention_is_the_same_in_both_orders() {
    let xs = var("xs", &[2, 48, 3, 5]);
    for heads in [1, 2] {
        check(&[&xs], |map| map.attention(heads, 0.4));
    }
    assert!(Map::enter(&xs, Form::LAST).unwrap().attention(5, 1.0).is_err());
}

#[test]
fn convolutions_and_what_follows_them_are_the_same_in_both_orders() {
    let xs = var("xs", &[2, 16, 6, 6]);
    for (kernel, stride, padding) in [(3, 1, 1), (3, 2, 1), (3, 2, 0), (1, 1, 0)] {
        let (weight, bias) = (var("weight", &[24, 16, kernel, kernel]), var("bias", &[24]));
        let shape = ConvShape { kernel, stride, padding };
        let vb = builder(&[("weight", &weight), ("bias", &bias)]);
        let conv = Conv2d::with_bias(16, 24, shape, vb).unwrap();
        let (scale, offset) = (var("scale", &[24]), var("offset", &[24]));
        let norm = GroupNorm::new(4, 24, 1e-5, builder(&[("weight", &scale), ("bias", &offset)]));
        let norm = norm.unwrap();
        let all = [&xs, &weight, &bias];
        check(&all, |map| conv.forward_map(&map));
        check(&all, |map| conv.forward_map(&map)?.upsample_2x()?.avg_pool_2x());
        check(&all, |map| {
            let ys = conv.forward_map(&map)?;
            ys.add(&ys)
        });
        let with_norm = [&xs, &weight, &bias, &scale, &offset];
        for activation in [Activation::Identity, Activation::Silu] {
            check(&with_norm, |map| norm.forward(&conv.forward_map(&map)?, activation));
        }
        let shift = var("shift", &[2, 24]);
        let shifted = [&xs, &weight, &bias, &shift];
        check(&shifted, |map| conv.forward_map_shifted(&map, &shift));
        check(&shifted, |map| conv.forward_map(&map)?.shifted(&shift));
        check(&shifted, |map| {
            let ys = conv.forward_map(&map)?;
            ys.shifted(&shift)?.add(&ys.pad_end()?.dropout(0.0, 0)?.cut(&ys)?)
        });
        let all = [&xs, &weight, &bias, &scale, &offset, &shift];
        check(&all, |map| norm.forward(&conv.forward_map_shifted(&map, &shift)?, Activation::Silu));
    }
}

impl Map {
    /// As much of it as `of` has.
    fn cut(&self, of: &Self) -> Result<Self> {
        let dims = of.xs.dims();
        let xs = (0..4).try_fold(self.xs.clone(), |xs, dim| xs.narrow(dim, 0, dims[dim]))?;
        Ok(self.with(xs.contiguous()?))
    }
}

#[test]
fn a_norm_of_each_image_is_the_same_in_both_orders() {
    let xs = var("xs", &[3, 8, 4, 4]);
    let (weight, bias) = (var("weight", &[3, 8]), var("bias", &[3, 8]));
    check(&[&xs, &weight, &bias], |map| map.group_norm(&weight, &bias, 2, 1e-6, Activation::Silu));
    let map = Map::enter(&xs, Form::LAST).unwrap();
    assert!(map.group_norm(&weight, &bias, 3, 1e-6, Activation::Silu).is_err());
}

/// Images have three channels and are padded to eight.
#[test]
fn padded_channels_change_nothing() {
    let xs = var("xs", &[2, 3, 5, 5]);
    let (weight, bias) = (var("weight", &[3, 3, 3, 3]), var("bias", &[3]));
    let vb = builder(&[("weight", &weight), ("bias", &bias)]);
    let conv = Conv2d::with_bias(3, 3, ConvShape::three(1), vb).unwrap();
    let run = |form| {
        let map = conv.forward_map(&Map::enter(&xs, form).unwrap()).unwrap();
        let again = conv.forward_map(&map).unwrap();
        assert_eq!(again.clone().settled().unwrap().xs.rank(), 4);
        let ys = again.leave(3).unwrap();
        let grads = ys.sqr().unwrap().sum_all().unwrap().backward().unwrap();
        let grads = [&xs, &weight, &bias].map(|v| grads.get(v).unwrap().clone());
        (ys, grads)
    };
    let (last, first) = (run(Form::LAST), run(Form::FIRST));
    assert_close(&last.0, &first.0, 1e-5);
    for (last, first) in last.1.iter().zip(&first.1) {
        assert_close(last, first, 1e-5);
    }
    let map = conv.forward_map(&Map::enter(&xs, Form::LAST).unwrap()).unwrap().settled().unwrap();
    assert_eq!(map.xs.dims(), &[2, 5, 5, 8]);
    let padding = map.xs.narrow(3, 3, 5).unwrap().sqr().unwrap().sum_all().unwrap();
    assert_eq!(padding.to_scalar::<f32>().unwrap(), 0.0);
}

#[test]
fn a_row_is_added_to_rows() {
    let (rows, row) = (random("rows", &[4, 10]), random("row", &[10]));
    assert_close(&ops::add_row(&rows, &row).unwrap(), &rows.broadcast_add(&row).unwrap(), 1e-6);
    let linear = Linear::of(random("weight", &[10, 10]), row);
    assert_eq!(linear.forward(&rows).unwrap().dims(), &[4, 10]);
}

#[test]
fn channels_first_is_for_f32_alone() {
    let form = Form { order: Order::ChannelsFirst, dtype: DType::BF16 };
    let error = Map::enter(&random("xs", &[1, 3, 4, 4]), form).unwrap_err().to_string();
    assert!(error.contains("expected f32, got BF16"), "{error}");
}

/// Maps of half the bits: within three roundings of eight bits.
#[test]
fn bf16_is_near_f32() {
    let xs = random("xs", &[2, 16, 6, 6]);
    let conv = Conv2d::with_bias(
        16,
        16,
        ConvShape::three(1),
        builder(&[("weight", &var("weight", &[16, 16, 3, 3])), ("bias", &var("bias", &[16]))]),
    );
    let conv = conv.unwrap();
    let run = |dtype| {
        let map = Map::enter(&xs, Form { order: Order::ChannelsLast, dtype }).unwrap();
        conv.forward_map(&map).unwrap().leave(16).unwrap()
    };
    assert_close(&run(DType::BF16), &run(DType::F32), 3e-2);
}
