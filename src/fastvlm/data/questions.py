"""Questions about documents, phrased in many ways, with answers exactly as printed.

    ask_about(sheet, truth, rng)      # -> list of QA: fields, lines, counts, yes or no, JSON, transcription

A field has labels (what is printed beside it), names (what a question calls it) and, for well-known ones, questions of its own.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass

from fastvlm.data.canvas import GroundTruth


@dataclass(frozen=True)
class QA:
    """A question about a document. `kind` is what is asked for, one of `QUESTION_KINDS`."""

    question: str
    answer: str
    kind: str


# Questions whose answer stands in the picture as it is, then those whose answer must be found by looking or counting.
EXTRACTIVE_KINDS = ("field", "cell", "chart", "line", "word", "transcription")
QUESTION_KINDS = (*EXTRACTIVE_KINDS, "reading", "count", "yes_no", "pointing", "category", "json", "table")


@dataclass(frozen=True)
class Field:
    labels: tuple[str, ...]
    names: tuple[str, ...]
    questions: tuple[str, ...] = ()


def _field(labels: str, names: str, questions: str = "") -> Field:
    return Field(*(tuple(part.strip() for part in text.split("|") if part.strip()) for text in (labels, names, questions)))


FIELDS: dict[str, Field] = {
    # Money
    "total": _field(
        "Total | Total | TOTAL | Grand total | Total due | Amount due | Total amount | Balance due | To pay | Total to pay | Sum | Amount payable | Final total",
        "total | total amount | grand total | amount due | total due | total to pay | final amount | total sum | sum to pay",
        "How much is due? | How much is it in total? | How much has to be paid? | What does it all cost? | How much must be paid? | How much money is owed? | What is the amount to pay? | How much was paid in total? | How much is the total? | What do I have to pay? | How much does everything cost together? | What's the bill?",
    ),
    "subtotal": _field("Subtotal | Sub-total | Net | Net total | Net amount | Subtotal excl. tax | Goods total", "subtotal | net amount | sum before tax | net total | amount before tax", "How much is it before tax? | What is the sum without tax?"),
    "tax": _field("Tax | VAT | Sales tax | GST | VAT 20% | Tax 8% | VAT 19% | MwSt 19% | incl. VAT | Tax amount | VAT 7.7%", "tax | tax amount | VAT | sales tax | amount of tax", "How much tax is charged? | How much is the tax? | How much VAT is there? | What is the tax?"),
    "discount": _field("Discount | Rebate | Voucher | You saved | Coupon", "discount | rebate | reduction", "How much is the discount? | How much was taken off? | How much was saved?"),
    "shipping": _field("Shipping | Delivery | Postage | Freight | Delivery fee", "shipping cost | delivery fee | postage", "How much is shipping? | What does delivery cost? | How much is charged for delivery?"),
    "tip": _field("Tip | Gratuity | Service | Service charge", "tip | gratuity | service charge", "How much is the tip? | How much was given as a tip?"),
    "cash": _field("Cash | Cash tendered | Paid | Given | Tendered | Amount paid", "cash given | amount tendered | cash received | amount paid", "How much cash was given? | How much did the customer hand over?"),
    "change": _field("Change | Change due | Change given | Your change", "change | change given | change due", "How much change was given? | How much did the customer get back?"),
    "amount": _field("Amount | Sum | Value | Amount in total", "amount | sum", "How much is it? | What amount is given?"),
    "price": _field("Price | Unit price | Cost | Only | Now", "price | cost", "How much does it cost? | What is the price?"),
    "payment_method": _field("Payment | Paid by | Method | Payment method | Tender | Payment type", "payment method | way of payment | means of payment | payment type", "How was it paid? | How did the customer pay? | What was it paid with?"),
    "card_number": _field("Card | Card no. | Card number | Account", "card number", "What card was used? | Which card was it paid with?"),
    "balance": _field("Balance | Account balance | Current balance | Available", "balance | account balance | current balance", "How much money is in the account? | What is the balance?"),
    # Numbers
    "invoice_number": _field("Invoice no. | Invoice number | Invoice # | Invoice No | Invoice | Inv. no. | Number | Bill no. | Invoice ID", "invoice number | number of the invoice | invoice no. | invoice ID | bill number", "Which invoice is this? | What number does the invoice have? | Invoice number? | What is the number of this invoice?"),
    "order_number": _field("Order no. | Order number | Order # | PO number | Your order | Purchase order | Order ID | PO", "order number | purchase order number | number of the order | order ID", "Which order is it for? | What number does the order have?"),
    "customer_number": _field("Customer no. | Customer ID | Account no. | Client no. | Customer number | Client ID", "customer number | customer ID | client number", "What number does the customer have?"),
    "receipt_number": _field("Receipt no. | Receipt # | Trans. no. | Receipt | Ticket | Check # | Bon | Slip no. | Transaction", "receipt number | number of the receipt | transaction number | receipt no.", "Which receipt is this? | What number does the receipt have?"),
    "reference": _field("Reference | Our ref. | Ref. | Ref | Your ref. | Reference no. | Our reference | File no. | Case no.", "reference | reference number | ref. number | file number", "What reference should be quoted? | Which reference is given?"),
    "form_number": _field("Form | Form no. | Form number | Application no. | File number | Request no. | Case number", "form number | application number | file number | number of the form", "Which form is it?"),
    "id_number": _field("ID | ID no. | ID number | Card no. | No. | Number | Personal no. | Licence no. | Member no. | Employee ID | Staff no. | Student ID", "ID number | card number | number of the card | ID | identification number", "What number does the card have? | Which ID is printed on the card?"),
    "iban": _field("IBAN | Account | Bank account | Account number", "IBAN | bank account", "Which account should the money go to? | Where should the money be sent? | To which account is it paid?"),
    "vat_id": _field("VAT ID | VAT no. | Tax ID | VAT reg. no. | Tax no. | VAT", "VAT ID | tax number | VAT number | tax ID", "What is the seller's tax number?"),
    "table_number": _field("Table | Table no. | Tbl", "table number | table", "Which table was it? | At which table did they sit?"),
    "till": _field("Till | Register | POS | Terminal | Lane", "till | register | till number | terminal", "Which till was it?"),
    # Dates and times
    "date": _field("Date | Date | DATE | Dated | Date of issue | Issue date | Issued | Invoice date | Day", "date | date of issue | day | date on the document", "When was it issued? | When was it written? | From when is it? | What day is it from? | On what date was it made? | What is the date of this document? | Which date is printed?"),
    "due_date": _field("Due date | Due | Payment due | Pay by | Due by | Please pay by | Payable by", "due date | date of payment | payment deadline | deadline", "When is it due? | By when must it be paid? | When is the payment due? | When must the money arrive? | Until when can it be paid?"),
    "delivery_date": _field("Delivery date | Delivered | Delivery | Shipped on | Date of delivery", "delivery date | date of delivery", "When was it delivered? | When does it arrive?"),
    "time": _field("Time | TIME | At | Hour", "time | time of day | time printed", "At what time was it? | What time is given? | When during the day was it? | What time was it issued?"),
    "date_of_birth": _field("Date of birth | Born | DOB | Birth date | D.O.B. | Birthday", "date of birth | birth date | birthday | DOB", "When was the person born? | When is the birthday? | On what day was the person born?"),
    "expiry_date": _field("Expires | Valid until | Expiry date | Valid to | Expiry | Exp. | Date of expiry | Valid thru", "expiry date | date of expiry | end of validity", "When does it expire? | Until when is it valid? | How long is it valid?"),
    "issue_date": _field("Issued | Issue date | Date of issue | Issued on | Member since | Since", "issue date | date of issue", "When was the card issued? | Since when is it valid?"),
    "start_date": _field("Start date | From | Start | Begins | First day", "start date | first day", "When does it start? | When does it begin?"),
    # People and places
    "name": _field("Name | Full name | Name | Applicant | Name of applicant | Holder", "name | full name | person's name | name of the person", "Who is it? | What is the person called? | Whose name is given? | Who filled it in? | What is the name? | Whose is it?"),
    "first_name": _field("First name | Given name | First name(s) | Forename | Given names", "first name | given name | forename", "What is the first name?"),
    "last_name": _field("Last name | Surname | Family name", "last name | surname | family name", "What is the surname?"),
    "customer": _field("Bill to | Customer | Client | Billed to | Sold to | Invoice to | To | Ship to", "customer | client | buyer | customer's name", "Who is the invoice for? | Who has to pay? | Who is billed? | Who is the customer? | To whom is it addressed? | Who bought it?"),
    "seller": _field("From | Seller | Supplier | Vendor | Company", "seller | supplier | vendor | company that issued it | issuer", "Who issued the invoice? | Who is the invoice from? | Which company sent this? | Who is the seller? | Who sells here?"),
    "store": _field("Store | Shop | Branch", "store | shop | name of the shop | store name | merchant | business", "Where was it bought? | Which shop is it from? | What is the shop called? | What store is this? | What is the name of the store? | Who issued the receipt?"),
    "sender": _field("From | Sender", "sender | writer | sender's name | author of the letter", "Who is the letter from? | Who wrote the letter? | Who signed the letter? | Who sent it? | Who wrote this? | From whom is it?"),
    "sender_company": _field("Company | From", "sender's company | company that wrote the letter | company", "Which company sent the letter? | Which company is the letter from?"),
    "sender_role": _field("Position | Role | Title", "sender's position | role of the sender | writer's job title", "What is the writer's job? | What position does the sender have?"),
    "recipient": _field("To | Recipient | Attn. | Attention", "recipient | addressee | receiver", "Who is the letter to? | To whom is it written? | Who receives the letter? | Who is it addressed to? | Who gets this?"),
    "cashier": _field("Cashier | Served by | Server | Operator | Clerk | Staff | Your host", "cashier | server | person who served", "Who served the customer? | Who was at the till? | Who was the cashier?"),
    "contact": _field("Contact | Contact person | Your contact | Prepared by | Sales rep | Agent", "contact person | contact | contact name", "Who should be contacted? | Who can be asked? | Who prepared it?"),
    "address": _field("Address | Street | Street address | Home address | Address line 1", "address | street address | street", "Where is it? | Where does the person live? | At what address? | What is the address? | Which street is it in?"),
    "city": _field("City | Town | Town / City | City/Town | Place", "city | town | place", "Which city is it? | In which town? | What town is given?"),
    "postcode": _field("Postcode | ZIP | ZIP code | Postal code | Post code", "postcode | ZIP code | postal code", "What is the ZIP?"),
    "country": _field("Country | Country of residence | Land", "country", "Which country is it? | In which country?"),
    "nationality": _field("Nationality | Citizenship | Citizen of", "nationality | citizenship", "Which nationality is given? | What country is the person from?"),
    "phone": _field("Phone | Tel. | Tel | Telephone | Phone no. | Mobile | Call us | T", "phone number | telephone number | phone | telephone | number to call", "Which number can be called? | What is the telephone number? | How can they be reached by phone? | What number should I call?"),
    "email": _field("Email | E-mail | Email address | Mail | e-mail", "email | email address | e-mail address | e-mail", "What is the mail address? | To which address can one write? | Which e-mail is given?"),
    "website": _field("Web | Website | Online | www | Visit us | Internet", "website | web address | web page | URL | internet address", "What is the address of the web page? | Which website is named?"),
    "occupation": _field("Occupation | Profession | Job | Job title | Position", "occupation | profession | job | job title", "What does the person do for a living? | What work does the person do?"),
    "employer": _field("Employer | Company | Organisation | Firm", "employer | company | organisation", "Where does the person work? | Who employs the person?"),
    "department": _field("Department | Dept. | Division | Unit | Team | Faculty", "department | division | unit | team", "In which department? | Which department is it?"),
    "position": _field("Position | Role | Title | Function", "position | role | job title | function", "What is the person's job? | What role is given?"),
    "organization": _field("Organisation | Issued by | Company", "organisation | issuer | company | organization", "Who issued the card? | Which organisation is the card from? | Whose card is it? | What company is on the card?"),
    "sex": _field("Sex | Gender | Sex", "sex | gender", ""),
    "height": _field("Height | Ht.", "height | body height", "How tall is the person?"),
    "blood_type": _field("Blood type | Blood group", "blood type | blood group", ""),
    "licence_class": _field("Class | Category | Type | Level", "class | category | type", "Which class is given?"),
    "subject": _field("Subject | Re | RE | Concerning | About | Regarding | Subject", "subject | subject line | topic | matter", "What is it about? | What is the letter about? | What does the subject line say?"),
    "title": _field("Title | Heading", "title | heading | headline", "What is the title? | What does the heading say? | What is the document called? | What is it called?"),
    "terms": _field("Terms | Payment terms | Conditions", "payment terms | terms", "What are the terms of payment? | Under what terms?"),
    "status": _field("Status | State | Condition", "status | state", "What is the status? | In what state is it?"),
    "opening_hours": _field("Open | Hours | Opening hours | Opening times | Business hours", "opening hours | opening times | hours", "When is it open? | What are the opening hours? | At what times can one come?"),
    "room": _field("Room | Room no. | Office", "room | room number | office", "Which room is it? | In which room?"),
    "floor": _field("Floor | Level | Storey", "floor | level", "On which floor is it?"),
    "quantity": _field("Quantity | Qty | Amount | Pieces | Units", "quantity | number of pieces", "How many pieces are there?"),
    "weight": _field("Weight | Gross weight | Net weight", "weight", "How heavy is it? | How much does it weigh?"),
    "version": _field("Version | Ver. | Build | Release", "version | version number | release", "Which version is it?"),
    "user": _field("User | Username | User name | Login | Account", "user name | user | login | account name", "Who is logged in? | Which user is it?"),
    "notes": _field("Notes | Remarks | Comments | Comment | Message", "notes | remarks | comment", "What is noted? | What remark was made?"),
    "signature_date": _field("Date | Signed on | Date of signature", "date of signature | date of signing", "When was it signed?"),
    "place": _field("Place | Location | Venue", "place | location | venue", "Where is it? | Where does it happen?"),
    "offer": _field("Offer | Special | Today", "offer | special offer", "What is offered? | What is on offer?"),
    # Travel: only in kinds that nano does not see
    "passenger": _field("Passenger | Name of passenger | Passenger name | Traveller", "passenger | passenger's name | traveller", "Who is travelling? | Who is the passenger? | Whose ticket is it?"),
    "flight": _field("Flight | Flight no. | Train | Service no.", "flight number | flight", "Which flight is it? | What is the flight?"),
    "origin": _field("From | Origin | Departing from", "place of departure | origin", "Where does the trip start? | From where does it leave?"),
    "destination": _field("To | Destination | Arriving at", "destination | place of arrival", "Where does it go? | Where does the trip end?"),
    "gate": _field("Gate | Platform", "gate", "At which gate? | Which gate does it leave from?"),
    "seat": _field("Seat | Seat no.", "seat | seat number", "Which seat is it? | Where does the passenger sit?"),
    "boarding_time": _field("Boarding | Boarding time | Boards at", "boarding time | time of boarding", "When does boarding begin? | When must one be at the gate?"),
    "departure_time": _field("Departs | Departure | Dep.", "departure time | time of departure", "When does it leave? | When is the departure?"),
    "booking_reference": _field("Booking ref. | PNR | Booking code | Reservation", "booking reference | booking code", "What is the booking code?"),
    "travel_class": _field("Class | Cabin", "travel class | cabin", "Which class is booked?"),
}  # fmt: skip

_ASK_FIELD = (
    "What is the {name}?", "What is the {name}?", "What is the {name}?", "What's the {name}?", "{Name}?", "{Name}?", "Give the {name}.", "Give me the {name}.", "Find the {name}.", "Read the {name}.",
    "Which {name} is printed?", "Which {name} is shown?", "What {name} is given?", "Tell me the {name}.", "Please read the {name}.", "Extract the {name}.", "{Name}:", "What is the {name} in this document?",
    "What is the {name} shown in the picture?", "Can you tell me the {name}?", "Look for the {name}.", "I need the {name}.", "What does the document say is the {name}?", "Return only the {name}.",
    "{name}", "State the {name}.", "Please give the {name}.", "Could you find the {name}?", "Answer with the {name}.", "What is written as the {name}?",
)  # fmt: skip
_ASK_LABEL = (
    'What is written next to "{label}"?', 'What does it say after "{label}"?', 'What is the value of "{label}"?', "What is the {label}?", "{label}?", 'What stands beside "{label}"?', "What is given for {label}?",
    "What is entered for {label}?", 'What is the entry for "{label}"?', "What is the value for {label}?", "{label}:", "Read the value of {label}.", "What value does {label} have?", 'Which value belongs to "{label}"?',
)  # fmt: skip
_ASK_LINE = (
    "What does line {n} say?", "Read line {n}.", "What is written in line {n}?", "What is on line {n}?", "Give line {n}.", "Transcribe line {n}.", "What is the {nth} line?", "Read the {nth} line.",
    "What does the {nth} line say?", "What is written in the {nth} line?", "Give me the text of line {n}.", "What stands in the {nth} line?", "Text of line {n}?", "Line {n}?", "What is the text in the {nth} row?",
)  # fmt: skip
_ASK_LAST_LINE = (
    "What does the last line say?",
    "Read the last line.",
    "What is the last line?",
    "What is written at the bottom?",
    "What is the text at the very end?",
    "What stands in the last line?",
)
_ASK_FIRST_LINE = (
    "What does the first line say?",
    "Read the first line.",
    "What is written at the top?",
    "What is the first line?",
    "What is the text at the top?",
    "How does the text begin?",
)
ASK_TRANSCRIPTION = (
    "Transcribe the text.", "Read the text.", "Read all the text in the picture.", "What does it say?", "What is written here?", "Transcribe all text.", "Write down all the text.", "Give the full text.",
    "What is the text in this image?", "Transcribe the document.", "Read everything.", "Copy out the text.", "Type out the whole text.", "OCR this image.", "Extract all text.", "Return all the text in the image.",
    "Please transcribe this page.", "What text does the picture contain?", "Full transcription, please.", "Read this document aloud.", "Perform OCR.", "Convert the picture to text.", "Text?", "Transcribe.",
    "Write out all the words in the image.", "Give me the text, line by line.", "Transcribe the image line by line.", "What does this page say?", "Extract the text from the image.", "Read the whole page.",
)  # fmt: skip
_ASK_LINE_COUNT = (
    "How many lines of text are there?",
    "How many lines does the text have?",
    "Count the lines of text.",
    "How many lines are written here?",
    "Number of lines?",
)
_ASK_IS = (
    "Is the {name} {value}?", "Is {value} the {name}?", "Does the document say that the {name} is {value}?", "Is it true that the {name} is {value}?", "The {name} is {value}. Is that right?", "Does it give {value} as the {name}?",
    "Is the printed {name} {value}?", "Yes or no: the {name} is {value}?",
)  # fmt: skip
_ASK_HAS = (
    'Does "{word}" appear in the text?',
    'Is the word "{word}" in the picture?',
    'Can you see "{word}"?',
    'Does it mention "{word}"?',
    'Is "{word}" written here?',
)
_ASK_AFTER = (
    'Which word comes after "{word}"?',
    'What comes right after "{word}"?',
    'What follows "{word}"?',
    'What is the next word after "{word}"?',
)
_ASK_JSON = (
    "Give the fields as JSON.", "Extract the fields as JSON.", "Return the key information as JSON.", "Turn the document into JSON.", "Extract all fields and answer in JSON.", "Output the document's data as JSON.",
    "Give all the information as a JSON object.", "Parse this into JSON.", "JSON, please.", "Read the document and return JSON.",
)  # fmt: skip
_ASK_JSON_KEYS = (
    "Extract {keys} as JSON.", "Return JSON with the keys {keys}.", "Give {keys} as JSON.", "Answer in JSON with the keys {keys}.", "Fill in this JSON: {skeleton}", "Read {keys} and return a JSON object.",
)  # fmt: skip
_ASK_TABLE = (
    "Give the table as CSV.",
    "Return the table in CSV format.",
    "Write the table as comma separated values.",
    "Extract the table as CSV.",
    "Transcribe the table as CSV.",
    "Convert the table to CSV.",
)

# What people ask first when they try a reader out: plain words, often with the name of the kind of document. For training only: the other splits are frozen.
_PLAIN: dict[str, tuple[str, ...]] = {key: tuple(part.strip() for part in text.split("|")) for key, text in {
    "total": "What is the total? | What is the total amount? | What is the total amount due? | How much is the total? | What is the grand total? | What's the total? | What is the final total? | What is the amount due? | What total is on the {noun}? | How much is the total on this {noun}? | What is the total price? | What is the total cost? | total amount | What is the balance due?",
    "subtotal": "What is the subtotal? | What is the subtotal before tax? | What is the net amount? | How much is the subtotal? | What is the amount before tax?",
    "tax": "What is the tax amount? | How much tax was charged? | How much is the tax? | How much tax was paid? | What is the VAT? | What is the VAT amount? | What is the sales tax?",
    "invoice_number": "What is the invoice number? | What's the invoice number? | What is the invoice no.? | What is the invoice ID? | Invoice number? | What is the number on the invoice?",
    "receipt_number": "What is the receipt number? | What is the number on the receipt? | What's the receipt number? | What is the transaction number?",
    "order_number": "What is the order number? | What is the purchase order number? | What is the PO number?",
    "customer_number": "What is the customer number? | What is the customer ID? | What is the account number?",
    "date": "What is the date? | What is the date on the {noun}? | What is the date of the {noun}? | What date is on the {noun}? | What date is shown? | When was the {noun} issued? | What is the {noun} date? | What date is printed on the {noun}? | On what date was it issued? | When is the {noun} dated?",
    "due_date": "What is the due date? | When is the payment due? | When is it due? | What is the payment due date? | By what date should it be paid? | When is the {noun} due?",
    "time": "What time is on the {noun}? | What is the time? | At what time was the {noun} printed? | What time is shown?",
    "store": "What is the name of the store? | What is the store name? | What store is this? | What is the name of the shop? | Which store is the {noun} from? | What is the name of the business? | What is the merchant's name? | Where was this purchase made? | What is the name at the top? | What is the restaurant called? | What is the name of the restaurant? | What is the name of the cafe? | Which company issued the {noun}? | What is the shop name?",
    "seller": "Who issued the invoice? | Which company issued the {noun}? | What is the name of the company? | Who is the {noun} from? | What is the seller's name? | What company sent the {noun}? | What is the company name? | Who is the vendor? | What is the vendor name?",
    "customer": "Who is the invoice addressed to? | Who is the customer? | What is the customer's name? | Who is the {noun} billed to? | Who is being billed? | Bill to whom? | What is the name of the customer? | Who is the client? | Who is the bill to?",
    "sender": "Who is the letter from? | Who wrote the letter? | Who signed the letter? | Who sent the letter? | Who is the sender? | What is the name of the sender? | Who is the author of the letter? | Whose signature is on the {noun}? | Who is it from? | Who sent this message? | Who is the {noun} from? | Who is the memo from? | Who sent the email? | What is the sender's name?",
    "recipient": "Who is the letter addressed to? | Who is the letter to? | Who is the recipient? | To whom is the letter addressed? | What is the name of the recipient? | Who is it addressed to? | Who received the {noun}? | Who is the memo to? | Who is the email to? | What is the recipient's name?",
    "sender_company": "What company is the letter from? | Which company sent the letter? | What is the name of the company? | What is the company in the letterhead?",
    "sender_role": "What is the title of the person who signed? | What is the sender's job title? | What is the position of the sender?",
    "subject": "What is the subject? | What is the subject of the {noun}? | What is the letter about? | What is the subject line? | What is the {noun} regarding?",
    "name": "What is the name? | What is the name on the {noun}? | Whose {noun} is this? | What is the full name? | What name is on the {noun}? | Who does the {noun} belong to? | What is the person's name? | What is the applicant's name? | What is the name of the person? | What is the cardholder's name?",
    "first_name": "What is the first name? | What is the first name on the {noun}? | What is the given name?",
    "last_name": "What is the last name? | What is the surname? | What is the last name on the {noun}? | What is the family name?",
    "id_number": "What is the ID number? | What is the card number? | What is the number on the card? | What is the ID? | What is the employee ID? | What is the member number? | What is the licence number? | What is the license number? | What is the student ID?",
    "date_of_birth": "What is the date of birth? | When was the person born? | What is the birth date? | What is the DOB? | When was the applicant born?",
    "expiry_date": "What is the expiry date? | When does it expire? | What is the expiration date? | When does the card expire? | Until when is the {noun} valid? | When is it valid until?",
    "issue_date": "What is the issue date? | When was it issued? | When was the card issued?",
    "organization": "What organization issued the card? | Which organisation issued the {noun}? | What is the name of the organization? | What is the company on the card? | Which company is on the {noun}?",
    "department": "What is the department? | Which department is it? | What department does the person work in?",
    "position": "What is the position? | What is the job title? | What is the person's role?",
    "occupation": "What is the occupation? | What is the job of the applicant? | What is the applicant's occupation?",
    "nationality": "What is the nationality? | Which nationality is given? | What is the citizenship?",
    "employer": "Who is the employer? | What is the name of the employer? | Where does the applicant work?",
    "start_date": "What is the start date? | When does it start? | When is the first day?",
    "delivery_date": "What is the delivery date? | When was it delivered? | When will it arrive? | When will the order arrive?",
    "address": "What is the address? | What is the address on the {noun}? | What is the street address? | What address is given?",
    "country": "What is the country? | Which country is given? | What country is it?",
    "city": "What is the city? | Which city is given? | In what city is it?",
    "phone": "What is the phone number? | What is the telephone number? | What's the phone number? | What phone number is on the {noun}? | What number can you call?",
    "email": "What is the email address? | What is the email? | What email address is given? | What is the e-mail address?",
    "website": "What is the website? | What is the URL? | What website is shown? | What is the web address?",
    "payment_method": "How was it paid? | What is the payment method? | How did the customer pay? | What payment method was used?",
    "cashier": "Who was the cashier? | What is the name of the cashier? | Who served the customer? | What is the server's name? | Who was the server? | Who took the order?",
    "tip": "How much was the tip? | What is the tip? | How much tip was given? | What is the tip amount? | How much was the service charge?",
    "discount": "How much is the discount? | What is the discount? | How much was the discount? | What is the discount amount?",
    "change": "How much change was given? | What is the change? | How much change was returned? | What is the change due?",
    "cash": "How much cash was paid? | How much cash was given? | What is the amount paid?",
    "title": "What is the title? | What is the title of the {noun}? | What is the heading? | What is the {noun} called? | What does the title say? | What is the heading at the top?",
    "price": "What is the price? | How much does it cost? | What price is shown?",
    "status": "What is the status? | What is the status of the {noun}?",
    "opening_hours": "What are the opening hours? | When is it open?",
    "iban": "What is the IBAN? | What is the bank account number? | What is the account number?",
    "reference": "What is the reference? | What is the reference number?",
    "amount": "What is the amount? | What amount is mentioned?",
    "contact": "Who is the contact person? | Who should be contacted? | What is the contact name?",
}.items()}  # fmt: skip
_PLAIN_OTHERS = (
    "What is the {name}?", "What is the {name} on the {noun}?", "What {name} is shown?", "What is the {name} in the {noun}?", "What's the {name}?", "{Name}?",
)  # fmt: skip
_NOUNS = {"id_card": ("card", "ID card", "card"), "screenshot": ("screen", "screenshot", "page")}


def ask_plainly(rng: random.Random, kind: str, fields: dict[str, str], labels: dict[str, str]) -> list[QA]:
    """One more question for each field, in the plainest words; the kind of document is often named."""
    asked = []
    nouns = (*_NOUNS.get(kind, (kind, kind)), "document", "image")
    for key, value in fields.items():
        label, known = labels.get(key), FIELDS.get(key)
        if key in _PLAIN and rng.random() < 0.75:
            question = rng.choice(_PLAIN[key])
        elif label and (known is None or rng.random() < 0.5):
            question = _name_in(rng.choice(_PLAIN_OTHERS), label.lower())
        else:
            question = _name_in(rng.choice(_PLAIN_OTHERS), rng.choice(known.names) if known else key.replace("_", " "))
        asked.append(QA(_vary(rng, question.replace("{noun}", rng.choice(nouns))), value, "field"))
    return asked


_NTH = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth", "eleventh", "twelfth")


def nth(number: int) -> str:
    """first, second, ...: for numbers from 1 to 12; 13th, ... beyond."""
    if number <= len(_NTH):
        return _NTH[number - 1]
    return f"{number}{'th' if 10 <= number % 100 <= 20 else {1: 'st', 2: 'nd', 3: 'rd'}.get(number % 10, 'th')}"


def field_question(rng: random.Random, key: str, label: str | None) -> str:
    """One of the ways to ask for a field: by one of its names, by a question of its own, or by its printed label."""
    known = FIELDS.get(key)
    if known is None or (label and rng.random() < 0.2):
        shown = label or key.replace("_", " ")
        if shown.isupper() and rng.random() < 0.5:
            shown = shown.capitalize()
        return _vary(rng, rng.choice(_ASK_LABEL).format(label=shown))
    if known.questions and rng.random() < 0.4:
        return _vary(rng, rng.choice(known.questions))
    return _vary(rng, _name_in(rng.choice(_ASK_FIELD), rng.choice(known.names)))


def _name_in(template: str, name: str) -> str:
    return template.replace("{name}", name).replace("{Name}", name[0].upper() + name[1:])


def _vary(rng: random.Random, question: str) -> str:
    """Small changes that people make: no capital, no mark at the end, a word of courtesy."""
    way = rng.random()
    if way < 0.05:
        return question.lower() if question[:1].isupper() and question[1:2].islower() and '"' not in question else question
    if way < 0.09:
        return question.rstrip("?.:")
    if way < 0.11:
        return "Please answer: " + question
    if way < 0.13:
        return question + rng.choice([" Answer briefly.", " Short answer.", " Answer with the text only.", " Answer in a few words."])
    return question


def ask_about(
    rng: random.Random,
    truth: GroundTruth,
    fields: dict[str, str],
    labels: dict[str, str],
    tables: Sequence[Sequence[Sequence[str]]],
    numbered_lines: bool = True,
) -> list[QA]:
    """Questions that every kind has: fields, lines, words, counts, yes or no, JSON, tables, transcription.

    Args:
        fields, labels: values as printed, and printed labels, by key.
        numbered_lines: False where lines cannot be numbered with certainty (charts).
    """
    asked = [QA(rng.choice(ASK_TRANSCRIPTION), truth.text, "transcription")]
    values = list(fields.items())
    for key, value in values:
        asked.append(QA(field_question(rng, key, labels.get(key)), value, "field"))
    texts = [line.text for line in truth.lines]
    if numbered_lines and texts:
        for _ in range(3):
            number = rng.randint(1, min(len(texts), 12))
            question = rng.choice(_ASK_LINE).format(n=number, nth=nth(number))
            asked.append(QA(_vary(rng, question), texts[number - 1], "line"))
        asked.append(QA(rng.choice(_ASK_FIRST_LINE), texts[0], "line"))
        asked.append(QA(rng.choice(_ASK_LAST_LINE), texts[-1], "line"))
        if len(texts) <= 15:
            asked.append(QA(rng.choice(_ASK_LINE_COUNT), str(len(texts)), "count"))
    asked += _ask_words(rng, truth.text, texts)
    asked += _ask_yes_no(rng, values)
    if len(values) >= 2:
        asked.append(QA(rng.choice(_ASK_JSON), json.dumps(fields, ensure_ascii=False), "json"))
        some = dict(rng.sample(values, rng.randint(1, min(4, len(values)))))
        keys = ", ".join(some)
        skeleton = json.dumps(dict.fromkeys(some, ""))
        asked.append(QA(rng.choice(_ASK_JSON_KEYS).format(keys=keys, skeleton=skeleton), json.dumps(some, ensure_ascii=False), "json"))
    for table in tables:
        if table:
            asked.append(QA(rng.choice(_ASK_TABLE), "\n".join(",".join(_csv(cell) for cell in row) for row in table), "table"))
    return asked


def _csv(cell: str) -> str:
    return f'"{cell}"' if "," in cell or '"' in cell else cell


def _ask_words(rng: random.Random, text: str, lines: Sequence[str]) -> list[QA]:
    asked = []
    words = [word for word in text.split() if len(word) > 3 and word.isalpha()]
    if words:
        asked.append(QA(rng.choice(_ASK_HAS).format(word=rng.choice(words)), "Yes", "yes_no"))
    everything = text.split()
    for _ in range(3):
        line = rng.choice(list(lines)).split() if lines else []
        if len(line) < 2:
            continue
        at = rng.randrange(len(line) - 1)
        if everything.count(line[at]) == 1 and '"' not in line[at] + line[at + 1]:
            asked.append(QA(rng.choice(_ASK_AFTER).format(word=line[at]), line[at + 1], "word"))
            break
    return asked


def _ask_yes_no(rng: random.Random, values: Sequence[tuple[str, str]]) -> list[QA]:
    """One right and one wrong statement; the wrong value is the field's with some characters changed, or another field's."""
    known = [(key, value) for key, value in values if key in FIELDS]
    asked = []
    for right in (True, False):
        if not known:
            break
        key, value = rng.choice(known)
        shown = value if right else wrong_value(rng, value)
        name = rng.choice(FIELDS[key].names)
        asked.append(QA(rng.choice(_ASK_IS).replace("{name}", name).replace("{value}", shown), "Yes" if right else "No", "yes_no"))
    return asked


def wrong_value(rng: random.Random, value: str) -> str:
    """A value that looks like this one and is not: digits changed, or letters where there are none."""
    places = [i for i, character in enumerate(value) if character.isdigit()] or [
        i for i, character in enumerate(value) if character.isalpha()
    ]
    changed = list(value)
    for i in rng.sample(places, min(len(places), rng.randint(2, 4))):
        if value[i].isdigit():
            changed[i] = str((int(value[i]) + rng.randint(1, 9)) % 10)
        else:
            other = chr((ord(value[i].lower()) - 97 + rng.randint(1, 25)) % 26 + 97)
            changed[i] = other.upper() if value[i].isupper() else other
    wrong = "".join(changed)
    return wrong if wrong != value else value + "0"
