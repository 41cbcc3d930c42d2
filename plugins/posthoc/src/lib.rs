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
    ensemble::Ensemble,
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
    conf_branch::ConfBranch,
    rotpred::RotPred,
    mcd::Mcd,
    mos::Mos,
    rts::Rts,
    cider::Cider,
    npos::Npos,
    palm::Palm,
    reweightood::ReweightOod,
    dsvdd::Dsvdd,
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
    mds_pp::MdsPp,
    rmds_pp::RmdsPp,
    mds_multi::MdsMulti,
    neco::Neco,
    cop::Cop,
    corp::Corp,
    cadref::Cadref,
    wdiscood::WDiscOod,
    optfs::OptFs,
    webo::Webo,
    dropout_var::DropoutVar,
    odin::Odin,
    godin::Godin,
    iodin::Iodin,
    grood::Grood,
    adascale::AdaScale,
    mds_ensemble::MdsEnsemble,
    gram::Gram,
    rankfeat::RankFeat,
}

/// What OpenOOD scores and this crate does not, and why: networks of their own, which are no
/// classifier with further heads. docs/classifiers.md has the list too.
pub const LEFT_OUT: [(&str, &str); 7] = [
    (
        "arpl",
        "reciprocal points are a second checkpoint beside a network without a last layer; OpenOOD scores their distances as it scores logits",
    ),
    ("csi", "its heads are separate files, and its score is that of the classes"),
    (
        "cutpaste",
        "told apart are pasted patches, not classes, by nine layers of its own; the covariance of one class is fitted again for each batch that is scored",
    ),
    ("draem", "a network that repaints images and one that marks what it repainted"),
    (
        "opengan",
        "a discriminator of features, trained against a generator: a second checkpoint of a network of its own",
    ),
    (
        "patchcore",
        "patches of one class, of which a part is kept by random projections that nobody seeds",
    ),
    ("rd4ad", "an encoder and a decoder whose layers are compared, for images of one class"),
];

#[cfg(test)]
mod tests {
    use super::{LEFT_OUT, infos};

    #[test]
    fn what_is_left_out_is_not_here_and_the_page_says_why() {
        let page = include_str!("../../../docs/classifiers.md");
        for (id, reason) in LEFT_OUT {
            assert!(infos().iter().all(|info| info.id != id), "`{id}` is here");
            let row = format!("| `{id}` | {reason} |");
            assert!(page.lines().any(|line| line == row), "docs/classifiers.md lacks: {row}");
        }
        let listed = page.split_once("### Left out").expect("a list").1.split("##").next();
        let rows = listed.unwrap_or_default().lines().filter(|line| line.starts_with("| `"));
        assert_eq!(rows.count(), LEFT_OUT.len(), "docs/classifiers.md lists others");
    }
}
