//! As `real`, with a DenseNet-BC-100, which takes two cores a quarter of an hour.

#[path = "real/leaderboard.rs"]
mod leaderboard;

#[test]
fn the_leaderboard_of_a_densenet_on_cifar10_equals_the_reference() {
    leaderboard::compare("densenet100_cifar10.json", "densenet100_cifar10.pth.tar");
}
