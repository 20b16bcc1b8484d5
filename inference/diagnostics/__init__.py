"""Whether to believe a posterior: draws for ArviZ, and checks with verdicts."""

from inference.diagnostics.agreement import AgainstNuts
from inference.diagnostics.check import VERDICTS, CannotTell, Check, Finding
from inference.diagnostics.diagnose import REGISTRY, Diagnostic, diagnose
from inference.diagnostics.diagnosis import Diagnosis
from inference.diagnostics.draws import posterior_draws
from inference.diagnostics.evidence import Evidence, evidence
from inference.diagnostics.gaps import Gaps, inference_gaps
from inference.diagnostics.importance import ImportanceWeights, importance_weights
from inference.diagnostics.label_calibration import LabelCalibration, label_calibration
from inference.diagnostics.loo import LeaveOneOut, leave_one_out
from inference.diagnostics.nuts import against_nuts
from inference.diagnostics.predictive import PredictiveCheck, predictive_check
from inference.diagnostics.sbc import Calibration, simulation_based_calibration
from inference.diagnostics.surgery import Surgery, elbo_surgery
from inference.diagnostics.to_arviz import to_arviz

__all__ = [
    "REGISTRY",
    "VERDICTS",
    "AgainstNuts",
    "Calibration",
    "CannotTell",
    "Check",
    "Diagnosis",
    "Diagnostic",
    "Evidence",
    "Finding",
    "Gaps",
    "ImportanceWeights",
    "LabelCalibration",
    "LeaveOneOut",
    "PredictiveCheck",
    "Surgery",
    "against_nuts",
    "diagnose",
    "elbo_surgery",
    "evidence",
    "importance_weights",
    "inference_gaps",
    "label_calibration",
    "leave_one_out",
    "posterior_draws",
    "predictive_check",
    "simulation_based_calibration",
    "to_arviz",
]
