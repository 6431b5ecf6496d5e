//! Two built-in cells, so that a demo runs and a test compiles without a file. For a real pack, fit your own.
//!
//! The open-circuit curves follow from published half-cell potentials; resistances are typical of the format and chosen round.

use crate::cell::{CellData, CellParams};

/// A 21700 NMC cell of 5 Ah. Half-cell potentials and stoichiometries of the LG M50: Chen et al., *J. Electrochem. Soc.* 167
/// (2020) 080534.
pub const NMC_5000MAH_DATA: CellData<'static> = CellData {
    name: "typical NMC 5 Ah",
    capacity_mah: 5_000.0,
    ocv_mv: &NMC_OCV_MV,
    ocv_mv_per_k: &[],
    temps_c: &[-20.0, -10.0, 0.0, 10.0, 25.0, 40.0],
    soc_grid: &[],
    r0_mohm: &[75.0, 55.0, 42.0, 33.0, 25.0, 21.0],
    r1_mohm: &[60.0, 36.0, 22.0, 14.0, 8.0, 5.0],
    tau1_s: &[4.0, 4.0, 4.0, 4.0, 4.0, 4.0],
    r2_mohm: &[60.0, 44.0, 32.0, 24.0, 16.0, 12.0],
    tau2_s: &[160.0, 140.0, 120.0, 100.0, 80.0, 65.0],
    hysteresis_mv: &[],
    hysteresis_rate: 30.0,
    sigma_mv: 5.0,
};

/// [`NMC_5000MAH_DATA`], checked when compiling.
pub const NMC_5000MAH: CellParams = built_in(&NMC_5000MAH_DATA);

/// A 26650 LFP cell of 2.5 Ah. Half-cell potentials: LFP of Prada et al., *J. Electrochem. Soc.* 160 (2013) A616; graphite of
/// Safari and Delacourt, *J. Electrochem. Soc.* 158 (2011) A562.
pub const LFP_2500MAH_DATA: CellData<'static> = CellData {
    name: "typical LFP 2.5 Ah",
    capacity_mah: 2_500.0,
    ocv_mv: &LFP_OCV_MV,
    ocv_mv_per_k: &[],
    temps_c: &[-20.0, -10.0, 0.0, 10.0, 25.0, 40.0],
    soc_grid: &[],
    r0_mohm: &[38.0, 25.0, 18.0, 14.0, 10.0, 8.5],
    r1_mohm: &[40.0, 25.0, 16.0, 11.0, 7.0, 5.0],
    tau1_s: &[10.0, 10.0, 10.0, 10.0, 10.0, 10.0],
    r2_mohm: &[40.0, 30.0, 22.0, 16.0, 11.0, 8.0],
    tau2_s: &[400.0, 360.0, 320.0, 280.0, 240.0, 200.0],
    hysteresis_mv: &[12.0],
    hysteresis_rate: 30.0,
    sigma_mv: 5.0,
};

/// [`LFP_2500MAH_DATA`], checked when compiling.
pub const LFP_2500MAH: CellParams = built_in(&LFP_2500MAH_DATA);

const fn built_in(data: &CellData<'_>) -> CellParams {
    match CellParams::new(data) {
        Ok(params) => params,
        // Evaluated by the compiler only: a wrong table does not build.
        Err(_) => panic!("built-in cell is wrong"),
    }
}

const NMC_OCV_MV: [f32; 101] = [
    2498.2, 2695.9, 2837.9, 2940.9, 3016.4, 3073.3, 3118.0, 3155.5, 3189.7, 3223.6, 3258.2, 3293.1,
    3326.0, 3354.7, 3378.2, 3396.6, 3411.0, 3422.6, 3432.5, 3441.3, 3449.8, 3458.1, 3466.6, 3475.5,
    3484.8, 3494.6, 3504.9, 3515.7, 3526.6, 3537.7, 3548.7, 3559.4, 3569.7, 3579.5, 3588.7, 3597.4,
    3605.6, 3613.4, 3620.7, 3627.8, 3634.7, 3641.4, 3648.1, 3654.8, 3661.7, 3668.6, 3675.8, 3683.4,
    3691.2, 3699.5, 3708.2, 3717.4, 3727.0, 3737.0, 3747.3, 3757.8, 3768.4, 3778.8, 3789.2, 3799.3,
    3809.3, 3819.2, 3829.2, 3839.6, 3850.6, 3862.4, 3875.1, 3888.1, 3900.9, 3912.9, 3923.9, 3934.0,
    3943.6, 3952.9, 3962.2, 3971.5, 3981.1, 3990.9, 4001.0, 4011.3, 4021.8, 4032.2, 4042.5, 4052.5,
    4061.8, 4070.2, 4077.4, 4083.4, 4088.1, 4091.5, 4094.1, 4096.3, 4098.9, 4102.5, 4108.0, 4115.9,
    4126.4, 4139.7, 4155.5, 4173.5, 4192.9,
];

const LFP_OCV_MV: [f32; 101] = [
    2402.9, 2587.1, 2725.2, 2833.6, 2918.2, 2983.9, 3034.5, 3073.4, 3103.2, 3126.1, 3143.8, 3157.7,
    3168.6, 3177.4, 3184.7, 3190.9, 3196.3, 3201.2, 3205.7, 3210.0, 3214.1, 3218.0, 3221.9, 3225.6,
    3229.3, 3232.9, 3236.4, 3239.7, 3242.9, 3245.9, 3248.7, 3251.4, 3253.9, 3256.2, 3258.3, 3260.2,
    3261.9, 3263.5, 3265.0, 3266.3, 3267.5, 3268.6, 3269.6, 3270.5, 3271.3, 3272.0, 3272.8, 3273.4,
    3274.1, 3274.7, 3275.3, 3275.9, 3276.5, 3277.1, 3277.7, 3278.4, 3279.1, 3279.9, 3280.7, 3281.6,
    3282.6, 3283.6, 3284.8, 3286.1, 3287.5, 3289.0, 3290.6, 3292.3, 3294.0, 3295.8, 3297.6, 3299.4,
    3301.1, 3302.9, 3304.5, 3306.0, 3307.5, 3308.8, 3310.0, 3311.1, 3312.1, 3313.0, 3313.8, 3314.5,
    3315.2, 3315.8, 3316.3, 3316.8, 3317.3, 3317.7, 3318.1, 3318.5, 3318.8, 3319.2, 3319.5, 3319.9,
    3320.4, 3321.3, 3323.9, 3333.9, 3374.5,
];
