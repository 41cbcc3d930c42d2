//! DiffOOD: diffusion denoising and classifier features.
