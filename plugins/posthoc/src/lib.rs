//! The post-hoc detectors, one file each: this folder is the list.
//!
//! They read what the classifier gives and are fitted without training it. Each file states the
//! paper, the score, where its defaults come from, and where OpenOOD's implementation differs.
//! Sums and linear algebra run in `f64`; scores are rounded to `f32` once.

pub mod numeric;

/// Declares the detectors' modules, and the macro that exports them all.
macro_rules! detectors {
    ($($file:ident::$name:ident),+ $(,)?) => {
        $(pub mod $file;)+

        /// Exports every detector of this crate as a pack.
        #[macro_export]
        macro_rules! export_posthoc {
            () => { oodbench_sdk::export_pack!($($crate::$file::$name),+); };
        }
    };
}

// One line for each detector.
detectors! {
    msp::Msp,
    mls::Mls,
    ebo::Ebo,
    gen_entropy::Gen,
    knn::Knn,
    mds::Mds,
    vim::Vim,
    react::React,
    odin::Odin,
}
