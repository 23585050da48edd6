"""The credit audit as a command: which definitions of segments give good credit, without training.

    segcredit audit audit.toml --output runs/audit

What ``[audit]`` may say is in ``settings``; what is measured, in ``credits`` and
``policy_gradients``; which metrics there are, in ``metric_list``; the files, in ``store``; the
order of the work, in ``runner``. The metrics themselves are functions of arrays: ``metrics``.
"""

from segcredit.credit_audit.comparison import compare_credits as compare_credits
from segcredit.credit_audit.credits import Credits as Credits
from segcredit.credit_audit.finished_audit import Audit as Audit
from segcredit.credit_audit.finished_audit import failed_units as failed_units
from segcredit.credit_audit.finished_audit import load_audit as load_audit
from segcredit.credit_audit.runner import Progress as Progress
from segcredit.credit_audit.runner import audit as audit
from segcredit.credit_audit.runner import audit_directory as audit_directory
from segcredit.credit_audit.settings import AuditConfig as AuditConfig
from segcredit.credit_audit.settings import load_audit_config as load_audit_config
