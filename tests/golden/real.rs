//! Real images and a published checkpoint, through the binary: `golden/real`.
//!
//! Tolerances: accuracy 0.0005 and AUROC 0.001, because images are decoded and resized by another
//! library than the reference's. FPR@95 hangs on the few images beside one threshold: 0.001 and the
//! share of three images are allowed.

#[path = "real/leaderboard.rs"]
mod leaderboard;

#[test]
fn the_leaderboard_of_a_resnet_on_cifar10_equals_the_reference() {
    leaderboard::compare("resnet20-12fca82f.json", "resnet20-12fca82f.th");
}
