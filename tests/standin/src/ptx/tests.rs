//! Kernels written in PTX, translated, compiled and run.

use super::{signatures, translate};
use crate::api::{Outcome, Refusal};
use crate::driver::codes::{ILLEGAL_ADDRESS, LAUNCH_FAILED, MISALIGNED_ADDRESS, NOT_SUPPORTED};
use crate::driver::{Kind, memory};
use crate::exec::{Kernel, Shape, run};

const HEAD: &str = ".version 9.0\n.target sm_90a\n.address_size 64\n";

/// A kernel `k(out)` with registers of each width and this body; the address of `out` is `%rd0`.
fn module(body: &str, outside: &str) -> String {
    format!(
        "{HEAD}{outside}.visible .entry k(.param .u64 k_param_0)\n{{\n\
         .reg .pred %p<9>; .reg .b16 %h<9>; .reg .b32 %r<19>; .reg .f32 %f<9>; .reg .b64 %rd<19>;\n\
         .reg .f64 %fd<9>;\nld.param.u64 %rd9, [k_param_0]; cvta.to.global.u64 %rd0, %rd9;\n\
         mov.u32 %r0, %tid.x;\n{body}\nret;\n}}\n"
    )
}

fn launch(text: &str, shape: Shape, out: usize) -> Outcome {
    let translation = translate(text, "k")?;
    let kernel = Kernel::load("k", &translation)?;
    run(&kernel, shape, &(out as u64).to_le_bytes(), &[])
}

fn block(threads: u32) -> Shape {
    Shape { grid: [1, 1, 1], block: [threads, 1, 1], dynamic_shared: 0 }
}

/// Runs a body on so many threads, with room for so many results of 64 bits.
fn results(body: &str, outside: &str, shape: Shape, count: usize) -> Result<Vec<u64>, Refusal> {
    let out = memory().allocate(count * 8, Kind::Device)?;
    let ended = launch(&module(body, outside), shape, out);
    // SAFETY: just allocated with this length, aligned to 512 bytes.
    let values = unsafe { std::slice::from_raw_parts(out as *const u64, count) }.to_vec();
    memory().free(out)?;
    ended.map(|()| values)
}

fn f(value: f32) -> String {
    format!("0f{:08X}", value.to_bits())
}

fn d(value: f64) -> String {
    format!("0d{:016X}", value.to_bits())
}

/// Instructions that leave their result in the register, and the bits that are expected.
#[track_caller]
fn check(cases: &[(String, &str, u64)]) {
    let mut body = String::new();
    for (at, (instructions, register, _)) in cases.iter().enumerate() {
        let width = match register.trim_start_matches('%').chars().next() {
            Some('h') => "16",
            Some('r') if !register.starts_with("%rd") => "32",
            Some('f') if !register.starts_with("%fd") => "32",
            _ => "64",
        };
        body += &format!("st.global.u64 [%rd0+{}], 0;\n", at * 8);
        body += &format!("{instructions}\nst.global.b{width} [%rd0+{}], {register};\n", at * 8);
    }
    let found = results(&body, "", block(1), cases.len()).unwrap();
    for ((instructions, _, expected), found) in cases.iter().zip(found) {
        assert_eq!(found, *expected, "`{instructions}`: {found:#x}, expected {expected:#x}");
    }
}

fn case(instructions: &str, register: &'static str, expected: u64) -> (String, &'static str, u64) {
    (instructions.to_owned(), register, expected)
}

fn single(instructions: &str, expected: f32) -> (String, &'static str, u64) {
    (instructions.to_owned(), "%f1", u64::from(expected.to_bits()))
}

#[test]
fn integers_wrap_extend_and_divide() {
    let minus = |value: i64| value as u64;
    let low = |value: i64| u64::from(value as u32);
    check(&[
        case("add.s32 %r1, 2147483647, 1;", "%r1", 0x8000_0000),
        case("mul.lo.s32 %r1, 65536, 65537;", "%r1", 65536),
        case("mul.hi.s32 %r1, -2, 3;", "%r1", low(-1)),
        case("mul.hi.u32 %r1, -2, 3;", "%r1", 2),
        case("mul.wide.s32 %rd1, -2, 3;", "%rd1", minus(-6)),
        case("mul.wide.u32 %rd1, -2, 3;", "%rd1", 0xFFFF_FFFE * 3),
        case("mad.lo.s64 %rd1, -5, 7, 1;", "%rd1", minus(-34)),
        case("mul.hi.u64 %rd1, -1, -1;", "%rd1", u64::MAX - 1),
        case("div.s32 %r1, -7, 2;", "%r1", low(-3)),
        case("rem.s32 %r1, -7, 2;", "%r1", low(-1)),
        case("div.u32 %r1, -7, 2;", "%r1", 0x7FFF_FFFC),
        case("shr.s32 %r1, -8, 40;", "%r1", low(-1)),
        case("shr.u32 %r1, -8, 40;", "%r1", 0),
        case("shl.b32 %r1, 1, 33;", "%r1", 0),
        case("abs.s32 %r1, -9;", "%r1", 9),
        case("neg.s64 %rd1, 9;", "%rd1", minus(-9)),
        case("min.s32 %r1, -1, 1;", "%r1", low(-1)),
        case("min.u32 %r1, -1, 1;", "%r1", 1),
        case("mov.u32 %r1, -1; cvt.s64.s32 %rd1, %r1;", "%rd1", u64::MAX),
        case("mov.u32 %r1, -1; cvt.u64.u32 %rd1, %r1;", "%rd1", 0xFFFF_FFFF),
        case("mov.u32 %r1, 0x1FF; cvt.s32.s8 %r2, %r1;", "%r2", low(-1)),
        case("mov.u32 %r1, 300; cvt.sat.u8.s32 %r2, %r1;", "%r2", 255),
        case("add.cc.u32 %r1, -1, 1; addc.u32 %r2, 3, 4;", "%r2", 8),
        case("sub.cc.u32 %r1, 0, 1; subc.u32 %r2, 3, 1;", "%r2", 1),
        case("mad.lo.cc.u32 %r1, -1, 2, 2; madc.hi.u32 %r2, -1, 2, 0;", "%r2", 2),
    ]);
}

#[test]
fn bits_are_counted_moved_and_permuted() {
    check(
        &[
            case("popc.b64 %r1, -1;", "%r1", 64),
            case("clz.b32 %r1, 1;", "%r1", 31),
            case("clz.b32 %r1, 0;", "%r1", 32),
            case("bfind.u32 %r1, 256;", "%r1", 8),
            case("bfind.s32 %r1, -257;", "%r1", 8),
            case("brev.b32 %r1, 1;", "%r1", 0x8000_0000),
            case("bfe.u32 %r1, 0xABCD, 4, 8;", "%r1", 0xBC),
            case("bfe.s32 %r1, 0xF0, 4, 4;", "%r1", 0xFFFF_FFFF),
            case("bfi.b32 %r1, 0xF, 0, 8, 4;", "%r1", 0xF00),
            case("prmt.b32 %r1, 0x44332211, 0x88776655, 0x7410;", "%r1", 0x8855_2211),
            case("lop3.b32 %r1, 0xF0, 0xCC, 0xAA, 0x96;", "%r1", 0x96),
            case("shf.l.wrap.b32 %r1, 0x80000001, 2, 1;", "%r1", 5),
            case("shf.r.wrap.b32 %r1, 3, 1, 1;", "%r1", 0x8000_0001),
            case("dp4a.s32.s32 %r1, 0x01FF02FE, 0x01010101, 10;", "%r1", 10),
            case("mov.b64 %rd1, {0x11, 0x22};", "%rd1", 0x22_0000_0011),
            case("mov.b64 %rd1, 0x3300000044; mov.b64 {%r1, %r2}, %rd1;", "%r2", 0x33),
            case("selp.b32 %r1, 5, 6, %p1;", "%r1", 6).clone(),
        ]
        .map(|(instructions, register, expected)| {
            (format!("setp.eq.s32 %p1, 1, 2; {instructions}"), register, expected)
        }),
    );
}

#[test]
fn floats_round_as_they_are_told() {
    let third = 1.0_f32 / 3.0;
    check(&[
        single(&format!("add.f32 %f1, {}, {};", f(0.1), f(0.2)), 0.1 + 0.2),
        single(&format!("div.rz.f32 %f1, {}, {};", f(1.0), f(3.0)), third.next_down()),
        single(&format!("div.rp.f32 %f1, {}, {};", f(1.0), f(3.0)), third),
        single(
            &format!(
                "fma.rn.f32 %f1, {}, {}, {};",
                f(1.0 + f32::EPSILON),
                f(1.0 - f32::EPSILON),
                f(-1.0)
            ),
            -(f32::EPSILON * f32::EPSILON),
        ),
        single(&format!("min.f32 %f1, {}, {};", f(f32::NAN), f(2.0)), 2.0),
        single(&format!("mul.ftz.f32 %f1, {}, {};", f(1e-30), f(1e-10)), 0.0),
        single(&format!("add.sat.f32 %f1, {}, {};", f(0.8), f(0.9)), 1.0),
        single(&format!("ex2.approx.f32 %f1, {};", f(3.0)), 8.0),
        single(&format!("lg2.approx.f32 %f1, {};", f(8.0)), 3.0),
        single(&format!("copysign.f32 %f1, {}, {};", f(-1.0), f(5.0)), -5.0),
        single(&format!("cvt.rni.f32.f32 %f1, {};", f(2.5)), 2.0),
        single("cvt.rn.f32.s32 %f1, -7;", -7.0),
        single("cvt.rz.f32.s32 %f1, 16777219;", 16_777_218.0),
        single("mov.b16 %h1, 0xBFC0; cvt.f32.bf16 %f1, %h1;", -1.5),
        single("mov.b16 %h1, 0x3E00; cvt.f32.f16 %f1, %h1;", 1.5),
        case(&format!("cvt.rn.bf16.f32 %h1, {};", f(1.0 + 3.0 / 256.0)), "%h1", 0x3F82),
        case(&format!("cvt.rz.bf16.f32 %h1, {};", f(1.0 + 3.0 / 256.0)), "%h1", 0x3F81),
        case(&format!("cvt.rn.f16.f32 %h1, {};", f(65520.0)), "%h1", 0x7C00),
        case(&format!("cvt.rn.bf16x2.f32 %r1, {}, {};", f(2.0), f(1.0)), "%r1", 0x4000_3F80),
        case("mov.b32 %r1, 0x40003F80; fma.rn.bf16x2 %r2, %r1, %r1, %r1;", "%r2", 0x40C0_4000),
        case("mov.b16 %h1, 0x3F80; mul.bf16 %h2, %h1, %h1;", "%h2", 0x3F80),
        case(&format!("cvt.rzi.s32.f32 %r1, {};", f(-1e20)), "%r1", 0x8000_0000),
        case(&format!("cvt.rzi.u32.f32 %r1, {};", f(-5.0)), "%r1", 0),
        case(&format!("cvt.rzi.s32.f32 %r1, {};", f(f32::NAN)), "%r1", 0),
        case(&format!("cvt.rna.tf32.f32 %r1, {};", f(1.0 + 1.0 / 2048.0)), "%r1", 0x3F80_2000),
        case(&format!("sqrt.rn.f64 %fd1, {};", d(2.0)), "%fd1", 2.0_f64.sqrt().to_bits()),
        case(&format!("cvt.rn.f32.f64 %f1, {};", d(0.1)), "%f1", u64::from(0.1_f32.to_bits())),
    ]);
}

#[test]
fn comparisons_know_nan_and_may_have_two_results() {
    let nan = f(f32::NAN);
    let one = f(1.0);
    let set = |comparison: &str, a: &str, b: &str, expected: u64| {
        let text = format!("setp.{comparison}.f32 %p1, {a}, {b}; selp.b32 %r1, 1, 0, %p1;");
        (text, "%r1", expected)
    };
    check(&[
        set("lt", &one, &nan, 0),
        set("ltu", &one, &nan, 1),
        set("ne", &one, &nan, 0),
        set("neu", &one, &nan, 1),
        set("nan", &one, &nan, 1),
        set("num", &one, &one, 1),
        set("equ", &one, &one, 1),
        case(
            "setp.lt.s32 %p1|%p2, -1, 1; selp.b32 %r1, 1, 0, %p1; selp.b32 %r2, 2, 0, %p2; \
             or.b32 %r1, %r1, %r2;",
            "%r1",
            1,
        ),
        case(
            "setp.eq.s32 %p3, 1, 1; setp.lt.and.u32 %p1, -1, 1, %p3; selp.b32 %r1, 1, 0, %p1;",
            "%r1",
            0,
        ),
        case("setp.hs.u32 %p1, -1, 1; @%p1 mov.u32 %r1, 7; @!%p1 mov.u32 %r1, 8;", "%r1", 7),
        case("set.eq.u32.s32 %r1, 4, 4;", "%r1", 0xFFFF_FFFF),
    ]);
}

#[test]
fn a_block_sums_through_shared_memory_and_barriers() {
    let body = ".shared .align 4 .b8 sums[512];\n\
        mov.u32 %r1, sums; shl.b32 %r2, %r0, 2; add.s32 %r3, %r1, %r2;\n\
        st.shared.u32 [%r3], %r0; mov.u32 %r4, 64;\n\
        LOOP: bar.sync 0; setp.ge.u32 %p1, %r0, %r4; @%p1 bra SKIP;\n\
        shl.b32 %r5, %r4, 2; add.s32 %r6, %r3, %r5;\n\
        ld.shared.u32 %r7, [%r6]; ld.shared.u32 %r8, [%r3]; add.s32 %r8, %r8, %r7;\n\
        st.shared.u32 [%r3], %r8;\n\
        SKIP: shr.u32 %r4, %r4, 1; setp.ne.s32 %p2, %r4, 0; @%p2 bra LOOP;\n\
        setp.ne.s32 %p3, %r0, 0; @%p3 ret; cvt.u64.u32 %rd1, %r8; st.global.u64 [%rd0], %rd1;";
    assert_eq!(results(body, "", block(128), 1).unwrap(), [127 * 64]);
    // A barrier of the warp does not order what other warps do.
    let broken = body.replace("bar.sync 0;", "bar.warp.sync -1;");
    let race = results(&broken, "", block(128), 1).unwrap_err();
    assert_eq!(race.code, LAUNCH_FAILED);
    assert!(race.line.contains("with no barrier since"), "{}", race.line);
    // Within one warp it does.
    let small = broken.replace("%r4, 64", "%r4, 16");
    assert_eq!(results(&small, "", block(32), 1).unwrap(), [31 * 16]);
    let broken = small.replace("bar.warp.sync -1;", "activemask.b32 %r9;");
    assert!(results(&broken, "", block(32), 1).is_err());
}

#[test]
fn lanes_of_a_warp_exchange_and_vote() {
    let store = "mul.wide.u32 %rd1, %r0, 8; add.s64 %rd2, %rd0, %rd1; cvt.u64.u32 %rd3, %r1;\n\
                 st.global.u64 [%rd2], %rd3;";
    let all =
        |instruction: &str| results(&format!("{instruction}\n{store}"), "", block(40), 40).unwrap();
    let expect = |what: &dyn Fn(u64) -> u64| (0..40).map(what).collect::<Vec<_>>();
    assert_eq!(all("shfl.sync.bfly.b32 %r1, %r0, 1, 31, -1;")[..32], expect(&|at| at ^ 1)[..32]);
    assert_eq!(
        all("shfl.sync.down.b32 %r1|%p1, %r0, 4, 31, -1;")[..32],
        expect(&|at| if at < 28 { at + 4 } else { at })[..32]
    );
    assert_eq!(all("shfl.sync.idx.b32 %r1, %r0, 3, 31, -1;")[..32], [3; 32]);
    assert_eq!(
        all("shfl.sync.up.b32 %r1, %r0, 1, 0, -1;")[..32],
        expect(&|at| at.saturating_sub(1))[..32]
    );
    let odd = "and.b32 %r2, %r0, 1; setp.eq.s32 %p1, %r2, 1;";
    assert_eq!(all(&format!("{odd} vote.sync.ballot.b32 %r1, %p1, -1;"))[0], 0xAAAA_AAAA);
    assert_eq!(all(&format!("{odd} vote.sync.ballot.b32 %r1, %p1, -1;"))[39], 0xAA);
    assert_eq!(all("redux.sync.add.u32 %r1, %r0, -1;")[5], 31 * 16);
    assert_eq!(all("shr.u32 %r2, %r0, 3; match.any.sync.b32 %r1, %r2, -1;")[9], 0xFF00);
}

#[test]
fn atomics_vectors_calls_and_tables_work() {
    let atomic = "mov.u64 %rd1, 0; atom.global.add.u64 %rd2, [%rd0], 3;\n\
                  atom.global.max.s64 %rd2, [%rd0+8], %rd1; red.global.add.f32 [%rd0+16], 0f3F800000;";
    let start = format!(
        "setp.ne.s32 %p1, %r0, 0; @%p1 bra GO; st.global.v2.u64 [%rd0], {{5, -4}};\n\
                  st.global.u64 [%rd0+16], 0; GO: bar.sync 0; {atomic}"
    );
    let found = results(&start, "", block(4), 3).unwrap();
    assert_eq!(found, [17, 0, u64::from(4.0_f32.to_bits())]);
    let function = ".func (.param .b32 out) twice(.param .b32 x) { .reg .b32 %a<3>;\n\
        ld.param.b32 %a1, [x]; add.s32 %a2, %a1, %a1; st.param.b32 [out+0], %a2; ret; }\n";
    let calling = "{ .param .b32 param0; st.param.b32 [param0+0], 21; .param .b32 retval0;\n\
        call.uni (retval0), twice, (param0); ld.param.b32 %r1, [retval0+0]; }\n\
        cvt.u64.u32 %rd1, %r1; st.global.u64 [%rd0], %rd1;";
    assert_eq!(results(calling, function, block(1), 1).unwrap(), [42]);
    let table = "mov.u32 %r1, 1; T: .branchtargets A, B; brx.idx %r1, T;\n\
        A: mov.u64 %rd1, 10; bra END; B: mov.u64 %rd1, 20; END: st.global.u64 [%rd0], %rd1;";
    assert_eq!(results(table, "", block(1), 1).unwrap(), [20]);
    let local = ".local .align 8 .b8 depot[16]; .reg .b64 %SP; mov.u64 %SP, depot;\n\
        cvta.local.u64 %rd1, %SP; st.u64 [%rd1+8], 77; ld.local.u64 %rd2, [%SP+8];\n\
        st.global.u64 [%rd0], %rd2;";
    assert_eq!(results(local, "", block(1), 1).unwrap(), [77]);
}

#[test]
fn what_a_kernel_may_not_do_ends_the_launch() {
    let refused = |body: &str, threads: u32| results(body, "", block(threads), 4).unwrap_err();
    let past = refused("ld.global.u32 %r1, [%rd0+32];", 1);
    assert_eq!(past.code, ILLEGAL_ADDRESS);
    assert!(past.line.contains("past an allocation of 32 bytes"), "{}", past.line);
    assert!(past.line.contains("ld.global.u32 %r1, [%rd0+32]"), "{}", past.line);
    assert_eq!(refused("ld.global.v2.u32 {%r1, %r2}, [%rd0+4];", 1).code, MISALIGNED_ADDRESS);
    assert_eq!(refused("mov.u64 %rd1, 0; st.global.u8 [%rd1], 1;", 1).code, ILLEGAL_ADDRESS);
    assert_eq!(refused("mov.u32 %r1, 0; ld.shared.u32 %r2, [%r1];", 1).code, ILLEGAL_ADDRESS);
    assert_eq!(refused("trap;", 1).code, LAUNCH_FAILED);
    let stuck = "setp.eq.s32 %p1, %r0, 0; @%p1 bra SKIP; bar.sync 1, 64; SKIP: bar.sync 0;";
    let stuck = refused(stuck, 64);
    assert_eq!(stuck.code, LAUNCH_FAILED);
    assert!(stuck.line.contains("wait for ever"), "{}", stuck.line);
    let lane = refused("shfl.sync.idx.b32 %r1, %r0, 0, 31, 1;", 2);
    assert!(lane.line.contains("lacks the calling lane"), "{}", lane.line);
    let unknown = refused("wgmma.fence.sync.aligned;", 1);
    assert_eq!(unknown.code, NOT_SUPPORTED);
}

#[test]
fn signatures_place_parameters_and_know_pointers() {
    let text = format!(
        "{HEAD}.visible .entry k(.param .u32 a, .param .u64 b, .param .align 8 .b8 s[12], .param .u8 c)\n\
         .reqntid 32, 1, 1\n{{ .reg .b64 %rd<4>; ld.param.u64 %rd1, [b];\n\
         cvta.to.global.u64 %rd2, %rd1; ret; }}\n"
    );
    let (_, signature) = signatures(&text).unwrap().remove(0);
    assert_eq!(signature.params, [(0, 4, 4), (8, 8, 8), (16, 12, 8), (28, 1, 1)]);
    assert_eq!(signature.param_bytes, 29);
    assert_eq!(signature.required, Some([32, 1, 1]));
    assert_eq!(translate(&text, "k").unwrap().pointers, [1].into());
}
