//! The post-hoc detectors, one file each: this folder is the list.
//!
//! They read what the classifier gives and are fitted without training it. Each file states the
//! paper, the score, where its defaults come from, and where OpenOOD's implementation differs.
//! Sums and linear algebra run in `f64`; scores are rounded to `f32` once.

pub mod numeric;

use oodbench_sdk::{Detector, DetectorBox, Error, HostBox, Info, Result};

/// Declares the detectors' modules, and the macro that exports them all.
macro_rules! detectors {
    ($($file:ident::$name:ident),+ $(,)?) => {
        $(pub mod $file;)+

        /// What each detector of this crate says about itself.
        pub fn infos() -> Vec<Info> {
            vec![$(<$file::$name as Detector>::info()),+]
        }

        /// Makes a detector of this crate as the pack does, without a library around it.
        ///
        /// # Errors
        /// An id that is not there, parameters that are unknown or out of range.
        pub fn create(id: &str, params: &str, host: HostBox) -> Result<DetectorBox> {
            $(
                if <$file::$name as Detector>::info().id == id {
                    return oodbench_sdk::create::<$file::$name>(params, host);
                }
            )+
            Err(Error::new(format!("there is no detector `{id}`")))
        }

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
    temp_scaling::TempScaling,
    klm::Klm,
    openmax::OpenMax,
    entropy::Entropy,
    mcm::Mcm,
    knn::Knn,
    mds::Mds,
    vim::Vim,
    react::React,
    vra::Vra,
    dice::Dice,
    ash::Ash,
    scale::Scale,
    t2fnorm::T2fNorm,
    rmds::Rmds,
    residual::Residual,
    she::She,
    gradnorm::GradNorm,
    nnguide::NnGuide,
    relation::Relation,
    fdbd::Fdbd,
    nci::Nci,
    cfood::Cfood,
    dropout::Dropout,
    gmm::Gmm,
    ssd::Ssd,
    odin::Odin,
}
