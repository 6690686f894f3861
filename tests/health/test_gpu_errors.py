"""What nvidia-smi and the kernel's log say of a GPU's memory and faults."""

import pytest

from convoy.health.finding import Status
from convoy.health.gpu_errors import judge_errors, xids

# The form of driver 580 for a card with ECC, its other sections left out.
HEALTHY = """<?xml version="1.0" ?>
<!DOCTYPE nvidia_smi_log SYSTEM "nvsmi_device_v12.dtd">
<nvidia_smi_log>
  <timestamp>Wed Nov 25 16:00:00 2026</timestamp>
  <driver_version>580.95.05</driver_version>
  <attached_gpus>1</attached_gpus>
  <gpu id="00000000:1A:00.0">
    <product_name>NVIDIA L40S</product_name>
    <ecc_mode><current_ecc>Enabled</current_ecc><pending_ecc>Enabled</pending_ecc></ecc_mode>
    <ecc_errors>
      <volatile>
        <sram_correctable>0</sram_correctable>
        <sram_uncorrectable_parity>0</sram_uncorrectable_parity>
        <sram_uncorrectable_secded>0</sram_uncorrectable_secded>
        <dram_correctable>7</dram_correctable>
        <dram_uncorrectable>0</dram_uncorrectable>
      </volatile>
      <aggregate>
        <dram_uncorrectable>3</dram_uncorrectable>
        <sram_threshold_exceeded>No</sram_threshold_exceeded>
      </aggregate>
      <unrepairable_memory>No</unrepairable_memory>
    </ecc_errors>
    <retired_pages>
      <pending_blacklist>N/A</pending_blacklist><pending_retirement>N/A</pending_retirement>
    </retired_pages>
    <remapped_rows>
      <remapped_row_corr>0</remapped_row_corr><remapped_row_unc>1</remapped_row_unc>
      <remapped_row_pending>No</remapped_row_pending>
      <remapped_row_failure>No</remapped_row_failure>
    </remapped_rows>
    <gpu_recovery_action>None</gpu_recovery_action>
  </gpu>
</nvidia_smi_log>
"""
WITHOUT_ECC = """<nvidia_smi_log><gpu id="00000000:01:00.0">
  <ecc_errors><volatile><dram_uncorrectable>N/A</dram_uncorrectable></volatile></ecc_errors>
  <remapped_rows>N/A</remapped_rows>
</gpu></nvidia_smi_log>"""
OLD = """<nvidia_smi_log><gpu id="00000000:3B:00.0"><ecc_errors><volatile>
  <single_bit><total>5</total></single_bit>
  <double_bit><device_memory>2</device_memory><total>2</total></double_bit>
</volatile></ecc_errors></gpu></nvidia_smi_log>"""
KERNEL = """\
[    5.402311] NVRM: loading NVIDIA UNIX x86_64 Kernel Module  580.95.05
[  912.678901] NVRM: Xid (PCI:0000:1a:00): 13, pid=4242, name=python, Graphics Exception
[90000.678901] NVRM: Xid (PCI:0000:1a:00): 79, pid=1234, GPU has fallen off the bus.
"""


def changed(before: str, after: str) -> str:
    assert before in HEALTHY
    return HEALTHY.replace(before, after, 1)


@pytest.mark.parametrize("listed", [HEALTHY, WITHOUT_ECC], ids=["healthy", "without ECC"])
def test_a_healthy_card(listed):
    """Errors that a reset has healed, in the aggregate, are no longer its state."""
    status, found = judge_errors(listed, "", 1000.0)
    assert status is Status.OK
    assert found == "no uncorrected memory error, Xids cannot be read here"


@pytest.mark.parametrize(
    ("listed", "said"),
    [
        (
            changed("<dram_uncorrectable>0<", "<dram_uncorrectable>2<"),
            "00000000:1A:00.0: 2 uncorrected memory errors since its last reset",
        ),
        (
            changed("<sram_uncorrectable_parity>0<", "<sram_uncorrectable_parity>1<"),
            "1 uncorrected memory errors",
        ),
        (OLD, "00000000:3B:00.0: 2 uncorrected memory errors"),
        (
            changed("<remapped_row_failure>No<", "<remapped_row_failure>Yes<"),
            "could not be replaced",
        ),
        (
            changed("<remapped_row_pending>No<", "<remapped_row_pending>Yes<"),
            "is replaced at the next reset only",
        ),
        (
            changed("<pending_retirement>N/A<", "<pending_retirement>Yes<"),
            "is retired at the next reset only",
        ),
        (
            changed("<unrepairable_memory>No<", "<unrepairable_memory>Yes<"),
            "its memory cannot be repaired",
        ),
        (
            changed("<gpu_recovery_action>None<", "<gpu_recovery_action>GPU Reset<"),
            "the driver asks for: GPU Reset",
        ),
    ],
)
def test_a_card_that_must_not_train(listed, said):
    status, found = judge_errors(listed, "", 1000.0)
    assert status is Status.FAIL and said in found


def test_a_fault_of_the_hardware_counts_for_a_day():
    assert xids(KERNEL) == [(912.678901, "0000:1a:00", 13), (90000.678901, "0000:1a:00", 79)]
    status, found = judge_errors(HEALTHY, KERNEL, 90600.0)
    assert status is Status.FAIL and found.startswith("0000:1a:00: Xid 79 10 minutes ago")
    assert judge_errors(HEALTHY, KERNEL, 90000.0 + 30 * 3600)[0] is Status.OK
    # 13 is a fault of the program.
    assert judge_errors(HEALTHY, KERNEL.splitlines()[1], 1000.0)[0] is Status.OK
